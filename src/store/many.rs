//! Rows written many at a time, and rows of many columns read at once.
//!
//! Sending rows to SQLite as values bound to `VALUES (?, …), (?, …), …` costs half of what `json_each` does. Texts are
//! put together once for each number of rows; numbers are powers of two, so that there are a handful of prepared
//! statements whatever the size of a batch. `?` and not `$1`: named parameters are looked up one by one, which makes
//! binding quadratic. PostgreSQL takes one array for each column and has one text for all sizes.
//!
//! What is read of a batch comes from SQLite as one JSON text: every row of an answer is handed from the driver's thread
//! to ours, and waking us costs more than the row. PostgreSQL sends rows.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use serde::de::{Deserialize, Deserializer, Visitor};

use super::sql::Sql;

/// Rows of one statement at most. More would save little of the hundred microseconds that a group of a thousand spends
/// on the way, and a prepared statement costs some 2 KB a row.
pub(super) const ROWS_MAX: usize = 128;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    /// Texts.
    Text,
    /// Whole numbers and times.
    Int,
    /// Flags.
    Bool,
}

impl Type {
    const fn postgres(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Int => "bigint",
            Self::Bool => "boolean",
        }
    }
}

/// `INSERT` of any number of rows.
#[derive(Debug)]
pub(super) struct Insert {
    pub(super) table: &'static str,
    /// Columns with a value for each row.
    pub(super) columns: &'static [(&'static str, Type)],
    /// Columns that are the same in all rows, as SQL.
    pub(super) constants: &'static [(&'static str, &'static str)],
    /// What follows, such as `ON CONFLICT …`.
    pub(super) after: &'static str,
}

/// Texts by statement (its address: they are all static) and number of rows; 0 is PostgreSQL's.
type Texts = HashMap<(usize, usize), Arc<str>>;

static TEXTS: LazyLock<Mutex<Texts>> = LazyLock::new(Mutex::default);

impl Insert {
    /// For SQLite, with that many rows.
    pub(super) fn sqlite(&'static self, rows: usize) -> Arc<str> {
        self.text(rows, || {
            let constants = self.constants.iter().map(|(_, sql)| *sql);
            let values: Vec<_> = self.columns.iter().map(|_| "?").chain(constants).collect();
            let row = format!("({})", values.join(","));
            format!("{} VALUES {} {}", self.into(), vec![row.as_str(); rows].join(","), self.after)
        })
    }

    /// For PostgreSQL: an array for each column.
    pub(super) fn postgres(&'static self) -> Arc<str> {
        self.text(0, || {
            let names: Vec<_> = self.columns.iter().map(|(name, _)| *name).collect();
            let values = names.iter().copied().chain(self.constants.iter().map(|(_, sql)| *sql));
            let arrays: Vec<_> = (1..)
                .zip(self.columns)
                .map(|(number, (_, column_type))| format!("${number}::{}[]", column_type.postgres()))
                .collect();
            format!(
                "{} SELECT {} FROM UNNEST({}) AS batch ({}) {}",
                self.into(),
                values.collect::<Vec<_>>().join(", "),
                arrays.join(", "),
                names.join(", "),
                self.after
            )
        })
    }

    fn into(&self) -> String {
        let names = self.columns.iter().map(|(name, _)| *name).chain(self.constants.iter().map(|(name, _)| *name));
        format!("INSERT INTO {} ({})", self.table, names.collect::<Vec<_>>().join(", "))
    }

    fn text(&'static self, rows: usize, make: impl FnOnce() -> String) -> Arc<str> {
        let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
        let text = texts.entry((std::ptr::from_ref(self).addr(), rows)).or_insert_with(|| make().into());
        Arc::clone(text)
    }
}

/// The largest power of two that is at most `rows` and [`ROWS_MAX`].
pub(super) fn chunk(rows: usize) -> usize {
    1 << rows.clamp(1, ROWS_MAX).ilog2()
}

/// A query for a batch of keys: on SQLite one row with one JSON array of arrays, on PostgreSQL rows with these columns.
#[derive(Debug)]
pub(super) struct Select {
    pub(super) sql: Sql,
    pub(super) columns: &'static [&'static str],
}

/// A value of such an array.
#[derive(Debug, Clone)]
pub(super) enum Cell {
    Null,
    Int(i64),
    Text(String),
}

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CellVisitor;
        impl Visitor<'_> for CellVisitor {
            type Value = Cell;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text, a whole number or null")
            }

            fn visit_unit<E>(self) -> Result<Cell, E> {
                Ok(Cell::Null)
            }

            fn visit_i64<E>(self, number: i64) -> Result<Cell, E> {
                Ok(Cell::Int(number))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Cell, E> {
                i64::try_from(number).map(Cell::Int).map_err(E::custom)
            }

            fn visit_str<E>(self, text: &str) -> Result<Cell, E> {
                Ok(Cell::Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(CellVisitor)
    }
}

/// What a [`Cell`] can be read as.
pub(super) trait FromCell: Sized {
    /// `None` where the cell holds something else.
    fn from_cell(cell: &Cell) -> Option<Self>;
}

impl FromCell for i64 {
    fn from_cell(cell: &Cell) -> Option<Self> {
        if let Cell::Int(number) = cell { Some(*number) } else { None }
    }
}

impl FromCell for bool {
    fn from_cell(cell: &Cell) -> Option<Self> {
        i64::from_cell(cell).map(|number| number != 0)
    }
}

impl FromCell for String {
    fn from_cell(cell: &Cell) -> Option<Self> {
        if let Cell::Text(text) = cell { Some(text.clone()) } else { None }
    }
}

/// No query of a [`Select`] reads bytes.
impl FromCell for Vec<u8> {
    fn from_cell(_: &Cell) -> Option<Self> {
        None
    }
}

impl<T: FromCell> FromCell for Option<T> {
    fn from_cell(cell: &Cell) -> Option<Self> {
        if matches!(cell, Cell::Null) { Some(None) } else { T::from_cell(cell).map(Some) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static SOME: Insert = Insert {
        table: "t",
        columns: &[("a", Type::Text), ("b", Type::Int)],
        constants: &[("c", "'x'")],
        after: "ON CONFLICT DO NOTHING",
    };

    #[test]
    fn texts_hold_a_parameter_for_each_value() {
        assert_eq!(&*SOME.sqlite(2), "INSERT INTO t (a, b, c) VALUES (?,?,'x'),(?,?,'x') ON CONFLICT DO NOTHING");
        assert_eq!(
            &*SOME.postgres(),
            "INSERT INTO t (a, b, c) SELECT a, b, 'x' FROM UNNEST($1::text[], $2::bigint[]) AS batch (a, b) \
             ON CONFLICT DO NOTHING"
        );
        assert_eq!(&*SOME.sqlite(1), "INSERT INTO t (a, b, c) VALUES (?,?,'x') ON CONFLICT DO NOTHING");
    }

    #[test]
    fn chunks_are_powers_of_two() {
        assert_eq!([1, 2, 3, 127, 128, 129, 5000].map(chunk), [1, 2, 2, 64, 128, 128, 128]);
    }

    #[test]
    fn cells_are_what_sqlite_writes() {
        let row: Vec<Cell> = serde_json::from_str(r#"[null,-9223372036854775808,"a\"b",1]"#).unwrap();
        assert_eq!(Option::<String>::from_cell(&row[0]), Some(None));
        assert_eq!(i64::from_cell(&row[1]), Some(i64::MIN));
        assert_eq!(Option::<String>::from_cell(&row[2]), Some(Some("a\"b".to_owned())));
        assert_eq!((bool::from_cell(&row[3]), String::from_cell(&row[3])), (Some(true), None));
    }
}
