//! One body of SQL for two databases: statement texts, arguments, rows and transactions that do not say which of the
//! two is behind them.
//!
//! Batches are one statement each: a JSON text is bound and expanded by `json_each` (SQLite) or `jsonb_to_recordset`
//! (PostgreSQL), so 256 rows cost one round trip to the database's thread or server and one prepared statement, whatever
//! their number. The rows of ingest and of results, which are many and wide, go and come as [`super::many`] says; only
//! there are statement texts put together at run time.

use std::sync::Arc;

use serde::Serialize;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{AssertSqlSafe, Decode, Postgres, Row as _, SqlSafeStr, Sqlite, Transaction, Type};

use super::many::{self, Cell, FromCell, Insert, Select};

use super::{Result, StoreError, postgres, sqlite};
use crate::model::{SessionId, UnixMillis};

/// A statement in both dialects. Arguments are `$1`, `$2`, … in both.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sql {
    /// As SQLite takes it.
    pub(super) sqlite: &'static str,
    /// As PostgreSQL takes it.
    pub(super) postgres: &'static str,
}

/// A statement that both understand.
pub(super) const fn both(text: &'static str) -> Sql {
    Sql { sqlite: text, postgres: text }
}

/// A statement with the batch bound to `$1` (a JSON array of objects) in its middle, as a parenthesised query with the
/// named columns: `with_batch!("DELETE FROM t WHERE id IN ", [id bigint], "")`. Types are PostgreSQL's; SQLite takes
/// those of JSON.
macro_rules! with_batch {
    ($before:expr, [$first:ident $first_type:ident $(, $column:ident $type:ident)*], $after:expr) => {
        $crate::store::sql::Sql {
            // Materialized, because json_each would write the element out as text again for each of its columns: four
            // times slower for the widest table.
            sqlite: concat!(
                $before,
                "(WITH elements AS MATERIALIZED (SELECT value AS element FROM json_each($1)) SELECT element->>'",
                stringify!($first),
                "' AS ",
                stringify!($first),
                $(", element->>'", stringify!($column), "' AS ", stringify!($column),)*
                " FROM elements)",
                $after
            ),
            postgres: concat!(
                $before,
                "(SELECT ", stringify!($first), $(", ", stringify!($column),)*
                " FROM jsonb_to_recordset($1::jsonb) AS elements(",
                stringify!($first), " ", stringify!($first_type),
                $(", ", stringify!($column), " ", stringify!($type),)*
                "))",
                $after
            ),
        }
    };
}
pub(super) use with_batch;

/// The columns of a table, once: a struct to write them with, [`Insert`](super::many::Insert)s of it, and a
/// [`Select`](super::many::Select) that reads them all for a batch of `session_id`s.
macro_rules! columns {
    (
        $(#[$doc:meta])*
        $name:ident of $table:literal, inserted by $insert:ident, replaced by $upsert:ident, read by $select:ident
        key { $key:ident: $key_type:ty => $key_sql:ident, $($key2:ident: $key2_type:ty => $key2_sql:ident,)* }
        set { $first:ident: $first_type:ty => $first_sql:ident, $($field:ident: $type:ty => $sql:ident,)* }
    ) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name<'a> {
            pub(super) $key: $key_type,
            $(pub(super) $key2: $key2_type,)*
            pub(super) $first: $first_type,
            $(pub(super) $field: $type,)*
        }

        impl $name<'_> {
            const TYPED: &'static [(&'static str, $crate::store::many::Type)] = &[
                (stringify!($key), $crate::store::many::Type::$key_sql),
                $((stringify!($key2), $crate::store::many::Type::$key2_sql),)*
                (stringify!($first), $crate::store::many::Type::$first_sql),
                $((stringify!($field), $crate::store::many::Type::$sql),)*
            ];

            const CONFLICT: &'static str = concat!(
                "ON CONFLICT (", stringify!($key), $(", ", stringify!($key2),)* ") DO UPDATE SET ",
                stringify!($first), " = excluded.", stringify!($first),
                $(", ", stringify!($field), " = excluded.", stringify!($field),)*
            );

            /// The values in the order of the columns.
            pub(super) fn append_to(self, values: &mut Vec<$crate::store::sql::Value>) {
                values.extend([
                    self.$key.into(), $(self.$key2.into(),)* self.$first.into(), $(self.$field.into(),)*
                ]);
            }
        }

        /// Inserts rows that the table does not hold.
        pub(super) static $insert: $crate::store::many::Insert = $crate::store::many::Insert {
            table: $table, columns: $name::TYPED, constants: &[], after: "",
        };

        /// Inserts rows, or replaces what is there.
        pub(super) static $upsert: $crate::store::many::Insert = $crate::store::many::Insert {
            table: $table, columns: $name::TYPED, constants: &[], after: $name::CONFLICT,
        };

        /// Reads the rows of a batch of sessions, in any order.
        pub(super) const $select: $crate::store::many::Select = $crate::store::sql::by_session!(
            $table, $key $($key2)* $first $($field)*
        );
    };
}
pub(super) use columns;

/// Reads columns of a table for a batch of `session_id`s.
macro_rules! by_session {
    ($table:literal, $first:ident $($column:ident)*) => {
        $crate::store::many::Select {
            sql: $crate::store::sql::Sql {
                sqlite: concat!(
                    "SELECT json_group_array(json_array(", stringify!($first), $(", ", stringify!($column),)*
                    ")) AS found FROM ", $table, " WHERE session_id IN (SELECT value FROM json_each($1))"
                ),
                postgres: concat!(
                    "SELECT ", stringify!($first), $(", ", stringify!($column),)*
                    " FROM ", $table, " WHERE session_id = ANY($1)"
                ),
            },
            columns: &[stringify!($first), $(stringify!($column),)*],
        }
    };
}
pub(super) use by_session;

/// An argument of a statement.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A whole number or a time.
    Int(Option<i64>),
    /// A text, in one allocation: a group has tens of thousands.
    Text(Option<Arc<str>>),
    /// Bytes.
    Bytes(Option<Vec<u8>>),
    /// A flag.
    Bool(bool),
    /// Keys: a JSON array in SQLite, an array in PostgreSQL.
    Keys(Vec<String>),
}

macro_rules! value_from {
    ($($type:ty => |$value:ident| $build:expr;)+) => {
        $(impl From<$type> for Value {
            fn from($value: $type) -> Self {
                $build
            }
        })+
    };
}

value_from! {
    i64 => |value| Self::Int(Some(value));
    bool => |value| Self::Bool(value);
    Option<i64> => |value| Self::Int(value);
    UnixMillis => |value| Self::Int(Some(value.get()));
    Option<UnixMillis> => |value| Self::Int(value.map(UnixMillis::get));
    &str => |value| Self::Text(Some(value.into()));
    String => |value| Self::Text(Some(value.into()));
    Option<&str> => |value| Self::Text(value.map(Into::into));
    Option<String> => |value| Self::Text(value.map(Into::into));
    &[u8] => |value| Self::Bytes(Some(value.to_vec()));
    Option<&[u8]> => |value| Self::Bytes(value.map(<[u8]>::to_vec));
}

/// Arguments of any of the kinds that [`Value`] is made of.
macro_rules! args {
    ($($value:expr),* $(,)?) => {
        vec![$($crate::store::sql::Value::from($value)),*]
    };
}
pub(super) use args;

/// A batch as the JSON text that a statement made by [`with_batch`] takes first.
pub(super) fn batch<T: Serialize>(rows: &[T]) -> Value {
    let json = serde_json::to_string(rows).expect("structs of texts and numbers always serialise");
    // A NUL would fail the whole batch in PostgreSQL, and go on failing it; see [`without_nul`].
    let json = if json.contains("\\u0000") { batch_without_nul(&json) } else { json };
    Value::Text(Some(json.into()))
}

fn batch_without_nul(json: &str) -> String {
    fn clean(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) => *text = text.replace('\0', "\u{fffd}"),
            serde_json::Value::Array(values) => values.iter_mut().for_each(clean),
            serde_json::Value::Object(fields) => fields.values_mut().for_each(clean),
            _ => {}
        }
    }
    let mut rows = serde_json::from_str(json).expect("what was serialised a moment ago can be read");
    clean(&mut rows);
    rows.to_string()
}

/// A batch of session ids.
pub(super) fn session_ids<'a>(ids: impl IntoIterator<Item = &'a SessionId>) -> Value {
    #[derive(Serialize)]
    struct Id<'a> {
        session_id: &'a str,
    }
    batch(&ids.into_iter().map(|id| Id { session_id: id.as_str() }).collect::<Vec<_>>())
}

macro_rules! bound {
    ($database:ty, $text:expr, $args:expr, $keys:expr) => {{
        let mut query = sqlx::query::<$database>($text);
        for value in $args {
            query = match value {
                Value::Int(value) => query.bind(value),
                Value::Text(value) => query.bind(value),
                Value::Bytes(value) => query.bind(value),
                Value::Bool(value) => query.bind(value),
                Value::Keys(keys) => query.bind($keys(keys)),
            };
        }
        query
    }};
}

/// A statement with its arguments, for SQLite.
fn for_sqlite(text: impl SqlSafeStr, args: impl IntoIterator<Item = Value>) -> Query<'static, Sqlite, SqliteArguments> {
    bound!(Sqlite, text, args, |keys: Vec<String>| {
        serde_json::to_string(&keys).expect("a list of texts always serialises")
    })
}

/// A statement with its arguments, for PostgreSQL.
fn for_postgres(text: impl SqlSafeStr, args: impl IntoIterator<Item = Value>) -> Query<'static, Postgres, PgArguments> {
    bound!(Postgres, text, args, |keys: Vec<String>| keys)
}

/// PostgreSQL keeps no NUL in a text. Events with one are refused before they get here; what is left are texts for
/// people (reasons, subjects), and those are kept readable on both alike.
fn without_nul(args: Vec<Value>) -> Vec<Value> {
    args.into_iter()
        .map(|value| match value {
            Value::Text(Some(text)) if text.contains('\0') => Value::Text(Some(text.replace('\0', "\u{fffd}").into())),
            other => other,
        })
        .collect()
}

/// What a column can be read as on both databases.
pub(super) trait Column:
    for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres> + FromCell
{
}
impl<T> Column for T where
    T: for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres> + FromCell
{
}

/// A row of an answer.
pub(super) struct Row {
    operation: &'static str,
    inner: RowOf,
}

enum RowOf {
    Sqlite(SqliteRow),
    Postgres(PgRow),
    /// One array of the JSON that a [`Select`] reads.
    Cells(Vec<Cell>, &'static [&'static str]),
}

impl Row {
    /// The column of that name.
    pub(super) fn get<T: Column>(&self, name: &'static str) -> Result<T> {
        match &self.inner {
            RowOf::Sqlite(row) => row.try_get(name),
            RowOf::Postgres(row) => row.try_get(name),
            RowOf::Cells(cells, columns) => {
                let at = columns.iter().position(|column| *column == name);
                let cell = at.and_then(|at| cells.get(at)).ok_or_else(|| sqlx::Error::ColumnNotFound(name.to_owned()));
                let value = cell.map(T::from_cell);
                value.and_then(|value| value.ok_or_else(|| sqlx::Error::Decode(format!("wrong type: {name}").into())))
            }
        }
        .map_err(|error| failed(self.operation, error))
    }

    /// The column as a time.
    pub(super) fn time(&self, name: &'static str) -> Result<Option<UnixMillis>> {
        Ok(self.get::<Option<i64>>(name)?.map(UnixMillis::new))
    }

    /// The column read by `parse`, which says `None` to what this program cannot have written.
    pub(super) fn parsed<T>(&self, name: &'static str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T> {
        let text: String = self.get(name)?;
        parse(&text).ok_or_else(|| self.corrupt(name, &text))
    }

    /// As [`Row::parsed`], where the column may be empty.
    pub(super) fn parsed_or_none<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(text) = self.get::<Option<String>>(name)? else { return Ok(None) };
        parse(&text).map(Some).ok_or_else(|| self.corrupt(name, &text))
    }

    /// The error for a column that holds what this program cannot have written.
    pub(super) fn corrupt(&self, name: &'static str, text: &str) -> StoreError {
        StoreError::Failed {
            operation: self.operation,
            source: format!("column {name} holds {}, which this program does not know", crate::model::quoted(text))
                .into(),
        }
    }
}

/// The value of a word in one of the `WORDS` tables.
pub(super) fn word<T: Copy>(words: &[(T, &'static str)], text: &str) -> Option<T> {
    words.iter().find(|(_, word)| *word == text).map(|(value, _)| *value)
}

/// The word of a value in one of the `WORDS` tables.
pub(super) fn word_of<T: Copy + PartialEq>(words: &[(T, &'static str)], value: T) -> &'static str {
    words.iter().find(|(known, _)| *known == value).map(|(_, word)| *word).expect("WORDS lists every value")
}

/// A transaction. Dropped without [`Tx::commit`] it is rolled back, also when the task that ran it is cancelled.
pub(super) struct Tx {
    operation: &'static str,
    inner: TxOf,
}

enum TxOf {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

impl Tx {
    /// Runs a statement and says how many rows it touched.
    pub(super) async fn execute(&mut self, sql: Sql, args: Vec<Value>) -> Result<i64> {
        let args = without_nul(args);
        let touched = match &mut self.inner {
            TxOf::Sqlite(tx) => for_sqlite(sql.sqlite, args).execute(&mut **tx).await.map(|done| done.rows_affected()),
            TxOf::Postgres(tx) => {
                for_postgres(sql.postgres, args).execute(&mut **tx).await.map(|done| done.rows_affected())
            }
        };
        touched.map(|rows| i64::try_from(rows).unwrap_or(i64::MAX)).map_err(|error| failed(self.operation, error))
    }

    /// All rows of a query.
    pub(super) async fn rows(&mut self, sql: Sql, args: Vec<Value>) -> Result<Vec<Row>> {
        let args = without_nul(args);
        let rows = match &mut self.inner {
            TxOf::Sqlite(tx) => for_sqlite(sql.sqlite, args)
                .fetch_all(&mut **tx)
                .await
                .map(|rows| rows.into_iter().map(RowOf::Sqlite).collect::<Vec<_>>()),
            TxOf::Postgres(tx) => for_postgres(sql.postgres, args)
                .fetch_all(&mut **tx)
                .await
                .map(|rows| rows.into_iter().map(RowOf::Postgres).collect()),
        };
        named(self.operation, rows)
    }

    /// The first row of a query.
    pub(super) async fn row(&mut self, sql: Sql, args: Vec<Value>) -> Result<Option<Row>> {
        Ok(self.rows(sql, args).await?.into_iter().next())
    }

    /// All rows of a query for a batch of keys.
    pub(super) async fn select(&mut self, select: &Select, keys: Vec<String>) -> Result<Vec<Row>> {
        let operation = self.operation;
        let rows = self.rows(select.sql, vec![Value::Keys(keys)]).await?;
        if matches!(self.inner, TxOf::Postgres(_)) {
            return Ok(rows);
        }
        let Some(found) = rows.first() else { return Ok(Vec::new()) };
        let json: String = found.get("found")?;
        let garbled = |error: serde_json::Error| failed(operation, sqlx::Error::Decode(error.into()));
        let found: Vec<Vec<Cell>> = serde_json::from_str(&json).map_err(garbled)?;
        Ok(found.into_iter().map(|cells| Row { operation, inner: RowOf::Cells(cells, select.columns) }).collect())
    }

    /// Inserts rows; `values` holds them one after the other.
    pub(super) async fn insert(&mut self, insert: &'static Insert, values: Vec<Value>) -> Result<()> {
        let width = insert.columns.len();
        let rows = values.len() / width;
        let mut values = without_nul(values).into_iter();
        let done = match &mut self.inner {
            TxOf::Sqlite(tx) => {
                let mut left = rows;
                while left > 0 {
                    let chunk = many::chunk(left);
                    let text = AssertSqlSafe(insert.sqlite(chunk));
                    let done = for_sqlite(text, values.by_ref().take(chunk * width)).execute(&mut **tx).await;
                    done.map_err(|error| failed(self.operation, error))?;
                    left -= chunk;
                }
                return Ok(());
            }
            TxOf::Postgres(_) if rows == 0 => return Ok(()),
            TxOf::Postgres(tx) => {
                let query = sqlx::query::<Postgres>(AssertSqlSafe(insert.postgres()));
                arrays(query, insert, values).execute(&mut **tx).await
            }
        };
        done.map(drop).map_err(|error| failed(self.operation, error))
    }

    /// Commits.
    pub(super) async fn commit(self) -> Result<()> {
        match self.inner {
            TxOf::Sqlite(tx) => tx.commit().await,
            TxOf::Postgres(tx) => tx.commit().await,
        }
        .map_err(|error| failed(self.operation, error))
    }

    /// Runs the migrator inside this transaction.
    pub(super) async fn migrate(&mut self, migrator: &sqlx::migrate::Migrator) -> Result<()> {
        match &mut self.inner {
            TxOf::Sqlite(tx) => migrator.run_direct(None, &mut **tx, false).await,
            TxOf::Postgres(tx) => migrator.run_direct(None, &mut **tx, false).await,
        }
        .map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(error) | sqlx::migrate::MigrateError::ExecuteMigration(error, _) => {
                failed(self.operation, error)
            }
            other => StoreError::Schema(format!("the schema cannot be migrated: {other}")),
        })
    }
}

/// Binds an array for each column.
fn arrays(
    mut query: Query<'static, Postgres, PgArguments>,
    insert: &Insert,
    values: impl Iterator<Item = Value>,
) -> Query<'static, Postgres, PgArguments> {
    enum Array {
        Int(Vec<Option<i64>>),
        Text(Vec<Option<String>>),
        Bool(Vec<bool>),
    }
    let mut columns: Vec<_> = insert
        .columns
        .iter()
        .map(|(_, column_type)| match column_type {
            many::Type::Int => Array::Int(Vec::new()),
            many::Type::Text => Array::Text(Vec::new()),
            many::Type::Bool => Array::Bool(Vec::new()),
        })
        .collect();
    let width = columns.len();
    for (at, value) in values.enumerate() {
        match (&mut columns[at % width], value) {
            (Array::Int(column), Value::Int(value)) => column.push(value),
            (Array::Text(column), Value::Text(value)) => column.push(value.map(|text| text.as_ref().to_owned())),
            (Array::Bool(column), Value::Bool(value)) => column.push(value),
            (_, value) => unreachable!("the structs of rows know the types of their columns, and {value:?} is none"),
        }
    }
    for column in columns {
        query = match column {
            Array::Int(column) => query.bind(column),
            Array::Text(column) => query.bind(column),
            Array::Bool(column) => query.bind(column),
        };
    }
    query
}

fn named(operation: &'static str, rows: std::result::Result<Vec<RowOf>, sqlx::Error>) -> Result<Vec<Row>> {
    rows.map(|rows| rows.into_iter().map(|inner| Row { operation, inner }).collect())
        .map_err(|error| failed(operation, error))
}

/// The connection pools, and what goes with them.
#[derive(Debug)]
pub struct Database {
    pub(super) backend: Backend,
    pub(super) changes: tokio::sync::broadcast::Sender<SessionId>,
    /// Tells this process from the others on the same database.
    pub(super) process: uuid::Uuid,
}

/// Which database is behind.
#[derive(Debug)]
pub(super) enum Backend {
    /// The embedded one.
    Sqlite(sqlite::Pools),
    /// A server.
    Postgres(sqlx::PgPool),
}

impl Database {
    /// Begins a transaction that writes. Only one at a time exists, on all replicas together.
    pub(super) async fn write(&self, operation: &'static str) -> Result<Tx> {
        let inner = match &self.backend {
            Backend::Sqlite(pools) => pools.write.begin_with("BEGIN IMMEDIATE").await.map(TxOf::Sqlite),
            Backend::Postgres(pool) => postgres::begin_write(pool).await.map(TxOf::Postgres),
        };
        inner.map(|inner| Tx { operation, inner }).map_err(|error| failed(operation, error))
    }

    /// Begins a transaction whose reads all see the same moment.
    pub(super) async fn snapshot(&self, operation: &'static str) -> Result<Tx> {
        let inner = match &self.backend {
            Backend::Sqlite(pools) => pools.read.begin().await.map(TxOf::Sqlite),
            Backend::Postgres(pool) => {
                pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map(TxOf::Postgres)
            }
        };
        inner.map(|inner| Tx { operation, inner }).map_err(|error| failed(operation, error))
    }

    /// All rows of one query.
    pub(super) async fn rows(&self, operation: &'static str, sql: Sql, args: Vec<Value>) -> Result<Vec<Row>> {
        let args = without_nul(args);
        let rows = match &self.backend {
            Backend::Sqlite(pools) => for_sqlite(sql.sqlite, args)
                .fetch_all(&pools.read)
                .await
                .map(|rows| rows.into_iter().map(RowOf::Sqlite).collect::<Vec<_>>()),
            Backend::Postgres(pool) => for_postgres(sql.postgres, args)
                .fetch_all(pool)
                .await
                .map(|rows| rows.into_iter().map(RowOf::Postgres).collect()),
        };
        named(operation, rows)
    }

    /// The first row of one query.
    pub(super) async fn row(&self, operation: &'static str, sql: Sql, args: Vec<Value>) -> Result<Option<Row>> {
        Ok(self.rows(operation, sql, args).await?.into_iter().next())
    }
}

/// Sorts a driver's error: worth another try, or not.
pub(super) fn failed(operation: &'static str, error: sqlx::Error) -> StoreError {
    let transient = match &error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(refusal) => {
            let code = refusal.code().unwrap_or_default();
            if refusal.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
                sqlite::is_transient(&code)
            } else {
                postgres::is_transient(&code)
            }
        }
        _ => false,
    };
    if transient {
        StoreError::Unavailable { operation, source: error.into() }
    } else {
        StoreError::Failed { operation, source: error.into() }
    }
}
