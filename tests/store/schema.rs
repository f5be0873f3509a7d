//! Opening, migrating, and what the tables say of themselves.

use std::collections::{BTreeMap, BTreeSet};

use meet_projector::store::{DatabaseUrl, Store, StoreError};

use super::fixtures::{EPOCH, Fresh, Kind, NOW, fold, scheduled};

pub async fn what_is_missing_is_said_and_applied_once(kind: Kind) {
    let fresh = Fresh::unmigrated(kind).await;
    fresh.store.ping().await.unwrap();
    let sentence = fresh.store.check_schema().await.unwrap_err();
    assert!(
        matches!(&sentence, StoreError::Schema(text) if text.contains("run `meet-projector migrate`")),
        "{sentence}"
    );
    let applied = fresh.store.migrate().await.unwrap();
    assert_eq!(applied.first().map(String::as_str), Some("0001 tables"));
    assert!(applied.is_sorted());
    assert_eq!(fresh.store.migrate().await.unwrap(), Vec::<String>::new());
    fresh.store.check_schema().await.unwrap();
}

pub async fn a_newer_a_changed_and_an_empty_schema_are_told_apart(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let bytes = if kind == Kind::Sqlite { "x'00'" } else { "'\\x00'::bytea" };
    fresh
        .execute(&format!(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (9999, 'later', true, {bytes}, 0)"
        ))
        .await;
    let newer = fresh.store.check_schema().await.unwrap_err().to_string();
    assert!(newer.contains("9999") && newer.contains("newer release"), "{newer}");
    assert!(matches!(fresh.store.migrate().await, Err(StoreError::Schema(_))));

    fresh.execute("DELETE FROM _sqlx_migrations WHERE version = 9999").await;
    fresh.execute(&format!("UPDATE _sqlx_migrations SET checksum = {bytes}")).await;
    let changed = fresh.store.check_schema().await.unwrap_err().to_string();
    assert!(changed.contains("another form"), "{changed}");

    fresh.execute("DELETE FROM _sqlx_migrations").await;
    let empty = fresh.store.check_schema().await.unwrap_err().to_string();
    assert!(empty.contains("no tables yet"), "{empty}");
}

pub async fn several_processes_may_migrate_at_once(kind: Kind) {
    let fresh = Fresh::unmigrated(kind).await;
    let mut handles = Vec::new();
    for _ in 0..8 {
        handles.push(fresh.another().await);
    }
    let migrations = handles.iter().map(|store| async { store.migrate().await.unwrap().len() });
    let applied: usize = futures_util::future::join_all(migrations).await.into_iter().sum();
    let all = Fresh::unmigrated(kind).await.store.migrate().await.unwrap().len();
    assert_eq!(applied, all, "each migration was applied by one of them");
    fresh.store.check_schema().await.unwrap();
}

pub async fn every_column_has_a_comment(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let sqlite = comments_in_sqlite();
    let columns: BTreeSet<String> = match kind {
        Kind::Sqlite => {
            let columns = fresh
                .texts(
                    "SELECT t.name || '.' || c.name FROM sqlite_schema AS t, pragma_table_info(t.name) AS c \
                     WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%' AND t.name NOT LIKE '_sqlx_%'",
                )
                .await;
            columns.into_iter().collect()
        }
        Kind::Postgres => {
            let bare = "FROM pg_class AS t JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum > 0 \
                        WHERE t.relkind = 'r' AND t.relnamespace = 'public'::regnamespace AND t.relname NOT LIKE '\\_sqlx%'";
            let uncommented = fresh
                .texts(&format!(
                    "SELECT t.relname || '.' || a.attname {bare} AND col_description(t.oid, a.attnum) IS NULL"
                ))
                .await;
            assert_eq!(uncommented, Vec::<String>::new(), "columns without a comment");
            fresh.texts(&format!("SELECT t.relname || '.' || a.attname {bare}")).await.into_iter().collect()
        }
    };
    assert_eq!(sqlite.keys().cloned().collect::<BTreeSet<_>>(), columns, "both have the same tables and columns");
    let uncommented: Vec<_> = sqlite.iter().filter(|(_, comment)| comment.is_empty()).collect();
    assert_eq!(uncommented, Vec::<(&String, &String)>::new(), "columns without a comment");
}

/// `table.column` → its comment, from the text of the migrations.
fn comments_in_sqlite() -> BTreeMap<String, String> {
    let mut comments = BTreeMap::new();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/sqlite");
    for file in std::fs::read_dir(folder).unwrap() {
        let mut table = None;
        for line in std::fs::read_to_string(file.unwrap().path()).unwrap().lines() {
            if let Some(rest) = line.strip_prefix("CREATE TABLE ") {
                table = Some(rest.trim_end_matches(" (").to_owned());
            } else if let Some((of, rest)) =
                line.strip_prefix("ALTER TABLE ").and_then(|l| l.split_once(" ADD COLUMN "))
            {
                let (definition, comment) = rest.split_once("--").unwrap_or((rest, ""));
                let name = definition.split_whitespace().next().unwrap_or_default();
                comments.insert(format!("{of}.{name}"), comment.trim().to_owned());
            } else if line.starts_with(')') {
                table = None;
            } else if let Some(table) = &table {
                let (definition, comment) = line.split_once("--").unwrap_or((line, ""));
                let name = definition.split_whitespace().next().unwrap_or_default();
                // Constraints are in capitals.
                if !name.is_empty() && name == name.to_lowercase() {
                    comments.insert(format!("{table}.{name}"), comment.trim().to_owned());
                }
            }
        }
    }
    comments
}

pub async fn only_files_are_served_and_by_one_process() {
    for url in ["sqlite::memory:", "sqlite://x?mode=memory", "mysql://x", "nothing", "sqlite://"] {
        let refused = Store::open(&DatabaseUrl(url.to_owned().into())).await;
        assert!(matches!(refused, Err(StoreError::Configuration(_))), "{url}: {refused:?}");
    }
    let fresh = Fresh::new(Kind::Sqlite).await;
    assert!(fresh.store.is_single_process());
    fresh.store.lock_for_serving().unwrap();
    fresh.store.lock_for_serving().unwrap();
    let other = fresh.another().await;
    assert!(matches!(other.lock_for_serving(), Err(StoreError::InUse(_))));
    // A command beside it may still read and write.
    fold(&other, vec![scheduled("s", 1, "t", 1)]).await;
    drop(fresh.store);
    other.lock_for_serving().unwrap();
}

pub async fn a_lost_server_is_unavailable_not_wrong() {
    let fresh = Fresh::new(Kind::Postgres).await;
    assert!(!fresh.store.is_single_process());
    fresh.store.lock_for_serving().unwrap();
    fold(&fresh.store, vec![scheduled("s", 1, "t", 1)]).await;
    // All connections break off at once; those in the pool do not know it yet.
    fresh
        .execute(
            "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity \
             WHERE datname = current_database() AND application_name = 'meet-projector'",
        )
        .await;
    let again = fresh.store.fold(EPOCH, &[super::fixtures::incoming(2, scheduled("s", 2, "t", 2))], NOW).await;
    if let Err(error) = again {
        assert!(error.is_transient(), "{error:?}");
    }
    fresh.store.fold(EPOCH, &[super::fixtures::incoming(2, scheduled("s", 2, "t", 2))], NOW).await.unwrap();
    assert_eq!(fresh.store.position(EPOCH).await.unwrap().contiguous, 2);

    let gone = Store::open(&DatabaseUrl("postgres://secret:word@127.0.0.1:1/x".to_owned().into())).await.unwrap_err();
    assert!(gone.is_transient(), "{gone:?}");
    let bad = Store::open(&DatabaseUrl("postgres://me:pass word@host:port/x".to_owned().into())).await.unwrap_err();
    assert!(!format!("{bad:?} {bad}").contains("pass word"));
}
