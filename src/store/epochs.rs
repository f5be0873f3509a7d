//! How far each incarnation of the stream was read, and by what it is known again.
//!
//! Processed sequences are kept as ranges that neither touch nor overlap. Replicas interleave, so the position from which
//! a consumer may be recreated is not the highest sequence but the end of the first range.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::sql::{Row, Sql, Tx, args, batch, both, with_batch};
use super::{Anchor, EpochRecord, Incoming, Position, Result, Store, StoreError};
use crate::model::{Epoch, UnixMillis};

/// Every message at a multiple of this becomes an anchor, and so does the first of a stream.
const ANCHOR_EVERY: i64 = 256;

/// Anchors are thinned when one at a multiple of this is kept, not for every group.
const THIN_EVERY: i64 = 16 * ANCHOR_EVERY;

/// So many anchors nearest the head are all kept; behind them, each time the distance doubles, [`ANCHORS_OCTAVE`].
/// 64 + 8 × 17 doublings are 200 anchors for two thousand million messages.
const ANCHORS_DENSE: i64 = 64;

/// Anchors kept in each doubling of the distance behind the dense ones.
const ANCHORS_OCTAVE: i64 = 8;

const RANGES_NEAR: Sql = both(
    "SELECT first_sequence, last_sequence FROM inbox \
     WHERE epoch = $1 AND first_sequence <= $3 + 1 AND last_sequence >= $2 - 1 ORDER BY first_sequence",
);

const DROP_RANGES: Sql = with_batch!(
    "DELETE FROM inbox WHERE (epoch, first_sequence) IN ",
    [epoch bigint, first_sequence bigint],
    ""
);

const ADD_RANGES: Sql = with_batch!(
    "INSERT INTO inbox (epoch, first_sequence, last_sequence) SELECT * FROM ",
    [epoch bigint, first_sequence bigint, last_sequence bigint],
    " AS batch"
);

const ADVANCE: Sql = both(
    "INSERT INTO position (epoch, highest_sequence, stored_at_ms, fingerprint) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (epoch) DO UPDATE SET highest_sequence = excluded.highest_sequence, \
     stored_at_ms = excluded.stored_at_ms, fingerprint = excluded.fingerprint \
     WHERE position.highest_sequence < excluded.highest_sequence",
);

/// `range_end` is the end of the last range that begins at or before the epoch's first sequence.
const POSITION: Sql = both(
    "SELECT start.first_sequence, \
     (SELECT i.last_sequence FROM inbox AS i WHERE i.epoch = $1 AND i.first_sequence <= start.first_sequence \
     ORDER BY i.first_sequence DESC LIMIT 1) AS range_end, \
     p.highest_sequence, p.stored_at_ms, p.fingerprint \
     FROM (SELECT COALESCE((SELECT first_sequence FROM epoch WHERE epoch = $1), 1) AS first_sequence) AS start \
     LEFT JOIN position AS p ON p.epoch = $1",
);

const ADD_ANCHORS: Sql = with_batch!(
    "INSERT INTO anchor (epoch, sequence, stored_at_ms, fingerprint) SELECT * FROM ",
    [epoch bigint, sequence bigint, stored_at_ms bigint, fingerprint text],
    " AS batch WHERE TRUE ON CONFLICT DO NOTHING"
);

const ANCHOR_SEQUENCES: Sql = both("SELECT sequence FROM anchor WHERE epoch = $1 ORDER BY sequence");

const DROP_ANCHORS: Sql =
    with_batch!("DELETE FROM anchor WHERE (epoch, sequence) IN ", [epoch bigint, sequence bigint], "");

const ANCHORS: Sql =
    both("SELECT sequence, stored_at_ms, fingerprint FROM anchor WHERE epoch = $1 ORDER BY sequence DESC LIMIT $2");

const ADD_SOURCES: Sql = with_batch!(
    "INSERT INTO epoch_source (epoch, source) SELECT * FROM ",
    [epoch bigint, source text],
    " AS batch WHERE TRUE ON CONFLICT DO NOTHING"
);

const LAST_STORED_AT: Sql = both("SELECT MAX(stored_at_ms) AS stored_at_ms FROM position");

const EPOCHS: Sql =
    both("SELECT epoch, stream, created, first_sequence, consumer, opened_at_ms, reason FROM epoch ORDER BY epoch");

const SOURCES: Sql = both("SELECT epoch, source FROM epoch_source ORDER BY epoch, source");

const OPEN: Sql = both(
    "INSERT INTO epoch (epoch, stream, created, first_sequence, consumer, opened_at_ms, reason) \
     VALUES ($1, $2, $3, $4, $5, $6, $7)",
);

const RESTAMP: Sql = both("UPDATE epoch SET created = $2 WHERE epoch = $1");

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Range {
    epoch: i64,
    first_sequence: i64,
    last_sequence: i64,
}

/// Notes the group as processed and says where the epoch stands then.
pub(super) async fn advance(tx: &mut Tx, epoch: Epoch, group: &[Incoming]) -> Result<Position> {
    let sequences: BTreeSet<i64> = group.iter().map(|incoming| incoming.sequence).collect();
    cover(tx, epoch, &runs(epoch, &sequences)).await?;
    if let Some(highest) = group.iter().max_by_key(|incoming| incoming.sequence) {
        let values = args![epoch.0, highest.sequence, highest.stored_at, highest.fingerprint.as_str()];
        tx.execute(ADVANCE, values).await?;
    }
    keep_anchors(tx, epoch, group).await?;
    position(tx.row(POSITION, args![epoch.0]).await?)
}

/// Consecutive sequences as ranges.
fn runs(epoch: Epoch, sequences: &BTreeSet<i64>) -> Vec<Range> {
    let mut runs: Vec<Range> = Vec::new();
    for &sequence in sequences {
        match runs.last_mut() {
            Some(run) if run.last_sequence + 1 == sequence => run.last_sequence = sequence,
            _ => runs.push(Range { epoch: epoch.0, first_sequence: sequence, last_sequence: sequence }),
        }
    }
    runs
}

/// Adds ranges to those that are kept, and merges where they touch or overlap.
async fn cover(tx: &mut Tx, epoch: Epoch, added: &[Range]) -> Result<()> {
    let (Some(first), Some(last)) = (added.first(), added.last()) else { return Ok(()) };
    let mut kept = BTreeSet::new();
    for row in tx.rows(RANGES_NEAR, args![epoch.0, first.first_sequence, last.last_sequence]).await? {
        kept.insert(Range {
            epoch: epoch.0,
            first_sequence: row.get("first_sequence")?,
            last_sequence: row.get("last_sequence")?,
        });
    }
    let merged = merged(kept.iter().chain(added).copied());
    let dropped: Vec<_> = kept.difference(&merged).copied().collect();
    let fresh: Vec<_> = merged.difference(&kept).copied().collect();
    if !dropped.is_empty() {
        tx.execute(DROP_RANGES, vec![batch(&dropped)]).await?;
    }
    if !fresh.is_empty() {
        tx.execute(ADD_RANGES, vec![batch(&fresh)]).await?;
    }
    Ok(())
}

fn merged(ranges: impl Iterator<Item = Range>) -> BTreeSet<Range> {
    let mut sorted: Vec<_> = ranges.collect();
    sorted.sort_unstable();
    let mut merged: Vec<Range> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.first_sequence <= last.last_sequence.saturating_add(1) => {
                last.last_sequence = last.last_sequence.max(range.last_sequence);
            }
            _ => merged.push(range),
        }
    }
    merged.into_iter().collect()
}

fn position(row: Option<Row>) -> Result<Position> {
    let row = row.expect("a query without a condition on its first table has one row");
    let first: i64 = row.get("first_sequence")?;
    let range_end: Option<i64> = row.get("range_end")?;
    Ok(Position {
        contiguous: range_end.unwrap_or(0).max(first - 1),
        highest: row.get::<Option<i64>>("highest_sequence")?.unwrap_or(0),
        highest_stored_at: row.time("stored_at_ms")?,
        highest_fingerprint: row.get("fingerprint")?,
    })
}

#[derive(Serialize)]
struct AnchorColumns<'a> {
    epoch: i64,
    sequence: i64,
    stored_at_ms: i64,
    fingerprint: &'a str,
}

async fn keep_anchors(tx: &mut Tx, epoch: Epoch, group: &[Incoming]) -> Result<()> {
    let anchors: BTreeMap<i64, AnchorColumns<'_>> = group
        .iter()
        .filter(|incoming| incoming.sequence % ANCHOR_EVERY == 0 || incoming.sequence == 1)
        .map(|incoming| {
            let columns = AnchorColumns {
                epoch: epoch.0,
                sequence: incoming.sequence,
                stored_at_ms: incoming.stored_at.get(),
                fingerprint: &incoming.fingerprint,
            };
            (incoming.sequence, columns)
        })
        .collect();
    if anchors.is_empty() {
        return Ok(());
    }
    let is_time_to_thin = anchors.keys().any(|sequence| sequence % THIN_EVERY == 0);
    let anchors: Vec<_> = anchors.into_values().collect();
    tx.execute(ADD_ANCHORS, vec![batch(&anchors)]).await?;
    if is_time_to_thin {
        thin_anchors(tx, epoch).await?;
    }
    Ok(())
}

async fn thin_anchors(tx: &mut Tx, epoch: Epoch) -> Result<()> {
    #[derive(Serialize)]
    struct Place {
        epoch: i64,
        sequence: i64,
    }
    let rows = tx.rows(ANCHOR_SEQUENCES, args![epoch.0]).await?;
    let sequences = rows.iter().map(|row| row.get("sequence")).collect::<Result<Vec<i64>>>()?;
    let superfluous: Vec<_> =
        superfluous(&sequences).into_iter().map(|sequence| Place { epoch: epoch.0, sequence }).collect();
    if !superfluous.is_empty() {
        tx.execute(DROP_ANCHORS, vec![batch(&superfluous)]).await?;
    }
    Ok(())
}

/// Which anchors may go, of all in ascending order. The oldest always stays. What is kept at a distance is a subset of
/// what was kept nearer, so thinning again and again ends in the same as thinning once.
fn superfluous(sequences: &[i64]) -> Vec<i64> {
    let Some((_, rest)) = sequences.split_first() else { return Vec::new() };
    let head = sequences.last().copied().unwrap_or_default() / ANCHOR_EVERY;
    rest.iter()
        .copied()
        .filter(|sequence| {
            let index = sequence / ANCHOR_EVERY;
            let distance = head - index;
            if distance < ANCHORS_DENSE {
                return false;
            }
            let octave = (distance / ANCHORS_DENSE).ilog2();
            let step = (ANCHORS_DENSE / ANCHORS_OCTAVE) << octave;
            index % step != 0
        })
        .collect()
}

/// Notes the sources of a group.
pub(super) async fn keep_sources(tx: &mut Tx, epoch: Epoch, sources: &BTreeSet<&str>) -> Result<()> {
    #[derive(Serialize)]
    struct Source<'a> {
        epoch: i64,
        source: &'a str,
    }
    if sources.is_empty() {
        return Ok(());
    }
    let sources: Vec<_> = sources.iter().map(|source| Source { epoch: epoch.0, source }).collect();
    tx.execute(ADD_SOURCES, vec![batch(&sources)]).await.map(drop)
}

/// Epochs and positions.
impl Store {
    /// Where the epoch was read to; the default when nothing was. In an epoch that begins later than at sequence 1,
    /// `contiguous` is never less than the sequence before its first.
    pub async fn position(&self, epoch: Epoch) -> Result<Position> {
        position(self.inner.row("reading the position", POSITION, args![epoch.0]).await?)
    }

    /// Moves the contiguous position over sequences that the stream no longer holds (`up_to` is the last of them).
    pub async fn skip_missing(&self, epoch: Epoch, up_to: i64) -> Result<()> {
        let mut tx = self.inner.write("skipping missing messages").await?;
        let from = position(tx.row(POSITION, args![epoch.0]).await?)?.contiguous + 1;
        if from <= up_to {
            cover(&mut tx, epoch, &[Range { epoch: epoch.0, first_sequence: from, last_sequence: up_to }]).await?;
        }
        tx.commit().await
    }

    /// All epochs, oldest first.
    pub async fn epochs(&self) -> Result<Vec<EpochRecord>> {
        let mut tx = self.inner.snapshot("reading the epochs").await?;
        let mut sources = BTreeMap::<i64, Vec<String>>::new();
        for row in tx.rows(SOURCES, args![]).await? {
            sources.entry(row.get("epoch")?).or_default().push(row.get("source")?);
        }
        for known in sources.values_mut() {
            // PostgreSQL sorts by the collation of the database, which is not that of bytes.
            known.sort_unstable();
        }
        tx.rows(EPOCHS, args![])
            .await?
            .iter()
            .map(|row| {
                let epoch = row.get("epoch")?;
                Ok(EpochRecord {
                    epoch: Epoch(epoch),
                    stream: row.get("stream")?,
                    created: row.get("created")?,
                    first_sequence: row.get("first_sequence")?,
                    consumer: row.get("consumer")?,
                    opened_at: UnixMillis::new(row.get("opened_at_ms")?),
                    reason: row.get("reason")?,
                    sources: sources.remove(&epoch).unwrap_or_default(),
                })
            })
            .collect()
    }

    /// Opens an epoch; fails with [`StoreError::Failed`] if its number is taken.
    pub async fn open_epoch(&self, record: &EpochRecord) -> Result<()> {
        let mut tx = self.inner.write("opening an epoch").await?;
        let values = args![
            record.epoch.0,
            record.stream.as_str(),
            record.created.as_str(),
            record.first_sequence,
            record.consumer.as_str(),
            record.opened_at,
            record.reason.as_str(),
        ];
        tx.execute(OPEN, values).await?;
        keep_sources(&mut tx, record.epoch, &record.sources.iter().map(String::as_str).collect()).await?;
        tx.commit().await
    }

    /// Stores another creation time for an epoch that is known to be the same (nats-server #8449).
    pub async fn restamp_epoch(&self, epoch: Epoch, created: &str) -> Result<()> {
        let mut tx = self.inner.write("restamping an epoch").await?;
        if tx.execute(RESTAMP, args![epoch.0, created]).await? == 0 {
            return Err(StoreError::Failed {
                operation: "restamping an epoch",
                source: format!("there is no epoch {epoch}").into(),
            });
        }
        tx.commit().await
    }

    /// Anchors of the epoch, newest first, at most `limit`.
    pub async fn anchors(&self, epoch: Epoch, limit: i64) -> Result<Vec<Anchor>> {
        let rows = self.inner.rows("reading the anchors", ANCHORS, args![epoch.0, limit]).await?;
        rows.iter()
            .map(|row| {
                Ok(Anchor {
                    sequence: row.get("sequence")?,
                    stored_at: UnixMillis::new(row.get("stored_at_ms")?),
                    fingerprint: row.get("fingerprint")?,
                })
            })
            .collect()
    }

    /// The moment the newest folded event of any epoch was stored by its server.
    pub async fn last_stored_at(&self) -> Result<Option<UnixMillis>> {
        match self.inner.row("reading the newest position", LAST_STORED_AT, args![]).await? {
            Some(row) => row.time("stored_at_ms"),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_dense_at_the_head_and_few_behind() {
        let mut kept: Vec<i64> = vec![1];
        for index in 1..60_000 {
            kept.push(index * ANCHOR_EVERY);
            if (index * ANCHOR_EVERY) % THIN_EVERY == 0 {
                let superfluous: BTreeSet<_> = superfluous(&kept).into_iter().collect();
                kept.retain(|sequence| !superfluous.contains(sequence));
            }
        }
        assert!((100..=220).contains(&kept.len()), "{} anchors", kept.len());
        assert_eq!(kept[0], 1);
        let head = 59_999;
        assert!((head - 50..=head).all(|index| kept.contains(&(index * ANCHOR_EVERY))));
        // No gap is much wider than an eighth of its distance from the head.
        for pair in kept.windows(2) {
            let distance = head * ANCHOR_EVERY - pair[0];
            assert!(pair[1] - pair[0] <= distance / 3 + THIN_EVERY, "gap {pair:?} at {distance}");
        }
    }

    #[test]
    fn ranges_merge_where_they_touch_or_overlap() {
        let range = |first_sequence, last_sequence| Range { epoch: 1, first_sequence, last_sequence };
        let all = [range(10, 12), range(1, 3), range(4, 4), range(7, 8), range(2, 3), range(8, 9)];
        assert_eq!(merged(all.into_iter()), BTreeSet::from([range(1, 4), range(7, 12)]));
    }
}
