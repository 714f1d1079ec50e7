//! One statement, for both stores. It is written as PostgreSQL wants it; for SQLite, [`for_sqlite`] replaces the few words that
//! SQLite has others for. A list is one parameter; a list of rows is the table `{given}`.

use std::fmt::Write as _;

use futures::TryStreamExt;
use futures::stream::BoxStream;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, FromRow};

use super::codec::{Cell, Kind, Value};
use super::database::{Conn, Held};
use crate::adapters::{postgres, sqlite};
use crate::ports::store::StoreError;

/// What is read of a row of either store.
pub(in crate::adapters) trait FromEither:
    for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin
{
}

impl<T> FromEither for T where T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin {}

/// Rows that are given to a statement. There they are the table `{given}`, which is called `given` and stands once in a `from`.
/// Where the statement speaks of `place`, that is each row's number, from 1 on.
///
/// SQLite runs the statement for a piece of the rows at a time: it must not add up over all of them.
pub(in crate::adapters) struct Given<'v> {
    len: usize,
    columns: Vec<(&'static str, Kind, Vec<Value<'v>>)>,
}

impl<'v> Given<'v> {
    /// One row for each of `items`, without columns so far.
    pub(in crate::adapters) fn of<T>(items: &'v [T]) -> GivenOf<'v, T> {
        GivenOf { items, given: Self { len: items.len(), columns: vec![] } }
    }
}

/// Rows that are made of items.
pub(in crate::adapters) struct GivenOf<'v, T> {
    items: &'v [T],
    given: Given<'v>,
}

impl<'v, T> GivenOf<'v, T> {
    pub(in crate::adapters) fn column<C: Cell<'v>>(
        mut self,
        name: &'static str,
        cell: impl Fn(&'v T) -> C,
    ) -> Self {
        let cells = self.items.iter().map(|item| cell(item).value()).collect();
        self.given.columns.push((name, C::KIND, cells));
        self
    }

    pub(in crate::adapters) fn rows(self) -> Given<'v> {
        self.given
    }
}

enum Parameter<'v> {
    One(Kind, Value<'v>),
    List(Kind, Vec<Value<'v>>),
}

/// A statement with its parameters: `$1` is the first that is bound.
pub(in crate::adapters) struct Statement<'t, 'v> {
    conn: &'t mut Conn,
    text: String,
    parameters: Vec<Parameter<'v>>,
    given: Option<&'v Given<'v>>,
}

impl<'t, 'v> Statement<'t, 'v> {
    pub(in crate::adapters) fn new(conn: &'t mut Conn, text: impl Into<String>) -> Self {
        Self { conn, text: text.into(), parameters: vec![], given: None }
    }

    /// Binds the next parameter.
    pub(in crate::adapters) fn bind<C: Cell<'v>>(mut self, cell: C) -> Self {
        self.parameters.push(Parameter::One(C::KIND, cell.value()));
        self
    }

    /// Binds a list as the next parameter, for `= any($n)` or `<> all($n)`.
    pub(in crate::adapters) fn list<C: Cell<'v>>(mut self, cells: impl IntoIterator<Item = C>) -> Self {
        let cells = cells.into_iter().map(C::value).collect();
        self.parameters.push(Parameter::List(C::KIND, cells));
        self
    }

    /// Says which rows `{given}` stands for.
    pub(in crate::adapters) fn given(mut self, given: &'v Given<'v>) -> Self {
        self.given = Some(given);
        self
    }

    /// Adds to the text.
    pub(in crate::adapters) fn push(mut self, text: &str) -> Self {
        self.text.push_str(text);
        self
    }

    /// Adds a parameter to the text, and binds it.
    pub(in crate::adapters) fn push_bind<C: Cell<'v>>(mut self, cell: C) -> Self {
        // Writing to a text cannot fail.
        let _ = write!(self.text, "${}", self.parameters.len() + 1);
        self.bind(cell)
    }

    /// Adds `and …`, where there is something to compare with: an index serves a bound that is not there at all, and not one that may
    /// be null.
    pub(in crate::adapters) fn filter<C: Cell<'v>>(self, compared: &str, cell: Option<C>) -> Self {
        match cell {
            Some(cell) => self.push(" and ").push(compared).push_bind(cell),
            None => self,
        }
    }

    /// The same of two columns together.
    pub(in crate::adapters) fn filter_two<A: Cell<'v>, B: Cell<'v>>(
        self,
        compared: &str,
        cells: Option<(A, B)>,
    ) -> Self {
        match cells {
            Some((a, b)) => {
                self.push(" and ").push(compared).push("(").push_bind(a).push(", ").push_bind(b).push(")")
            }
            None => self,
        }
    }

    /// Runs it. Returns how many rows it wrote.
    pub(in crate::adapters) async fn run(self) -> Result<u64, StoreError> {
        let mut written = 0;
        match self.prepared()? {
            Prepared::Postgres(conn, pieces) => {
                for (text, bound) in pieces {
                    let done = sqlx::query_with(AssertSqlSafe(text), bound).execute(&mut **conn).await;
                    written += done.map_err(postgres::db::failed)?.rows_affected();
                }
            }
            Prepared::Sqlite(conn, pieces) => {
                for (text, bound) in pieces {
                    let done = sqlx::query_with(AssertSqlSafe(text), bound).execute(&mut **conn).await;
                    written += done.map_err(sqlite::db::failed)?.rows_affected();
                }
            }
        }
        Ok(written)
    }

    /// Runs it, and reads all its rows.
    pub(in crate::adapters) async fn all<T: FromEither>(self) -> Result<Vec<T>, StoreError> {
        let mut all = Vec::new();
        match self.prepared()? {
            Prepared::Postgres(conn, pieces) => {
                for (text, bound) in pieces {
                    let read = sqlx::query_as_with(AssertSqlSafe(text), bound).fetch_all(&mut **conn).await;
                    all.append(&mut read.map_err(postgres::db::failed)?);
                }
            }
            Prepared::Sqlite(conn, pieces) => {
                for (text, bound) in pieces {
                    let read = sqlx::query_as_with(AssertSqlSafe(text), bound).fetch_all(&mut **conn).await;
                    all.append(&mut read.map_err(sqlite::db::failed)?);
                }
            }
        }
        Ok(all)
    }

    /// Runs it, and reads its rows one after the other. It has no `{given}`.
    pub(in crate::adapters) fn stream<T: FromEither + 't>(
        self,
    ) -> Result<BoxStream<'t, Result<T, StoreError>>, StoreError> {
        debug_assert!(self.given.is_none(), "SQLite would run it more than once");
        Ok(match self.prepared()? {
            Prepared::Postgres(conn, mut pieces) => match pieces.pop() {
                Some((text, bound)) => {
                    let rows = sqlx::query_as_with(AssertSqlSafe(text), bound).fetch(&mut **conn);
                    Box::pin(rows.map_err(postgres::db::failed))
                }
                None => Box::pin(futures::stream::empty()),
            },
            Prepared::Sqlite(conn, mut pieces) => match pieces.pop() {
                Some((text, bound)) => {
                    let rows = sqlx::query_as_with(AssertSqlSafe(text), bound).fetch(&mut **conn);
                    Box::pin(rows.map_err(sqlite::db::failed))
                }
                None => Box::pin(futures::stream::empty()),
            },
        })
    }

    /// Runs it, and reads its first row, if it has one.
    pub(in crate::adapters) async fn optional<T: FromEither>(self) -> Result<Option<T>, StoreError> {
        Ok(self.all().await?.into_iter().next())
    }

    /// Runs it, and reads its first row. [`StoreError::Invalid`] where it has none.
    pub(in crate::adapters) async fn one<T: FromEither>(self) -> Result<T, StoreError> {
        let row = self.optional().await?;
        row.ok_or_else(|| StoreError::Invalid("a statement returned no row where it must return one".into()))
    }

    /// The only column of all its rows.
    pub(in crate::adapters) async fn scalars<T>(self) -> Result<Vec<T>, StoreError>
    where
        (T,): FromEither,
    {
        Ok(self.all::<(T,)>().await?.into_iter().map(|(cell,)| cell).collect())
    }

    /// The only column of its first row, if it has one.
    pub(in crate::adapters) async fn scalar<T>(self) -> Result<Option<T>, StoreError>
    where
        (T,): FromEither,
    {
        Ok(self.optional::<(T,)>().await?.map(|(cell,)| cell))
    }

    fn prepared(self) -> Result<Prepared<'t>, StoreError> {
        let Self { conn, text, parameters, given } = self;
        match conn {
            Conn::Postgres(conn) => {
                for_postgres(&text, &parameters, given).map(|pieces| Prepared::Postgres(conn, pieces))
            }
            Conn::Sqlite(conn) => {
                in_pieces(&text, &parameters, given).map(|pieces| Prepared::Sqlite(conn, pieces))
            }
        }
        .map_err(|error| StoreError::Invalid(format!("a parameter: {error}")))
    }
}

/// A statement as it goes to its store: none, where it is given no rows; more than one, where SQLite takes them in pieces.
enum Prepared<'t> {
    Postgres(&'t mut Held<sqlx::Postgres>, Vec<(String, PgArguments)>),
    Sqlite(&'t mut Held<sqlx::Sqlite>, Vec<(String, SqliteArguments)>),
}

fn for_postgres(
    text: &str,
    parameters: &[Parameter<'_>],
    given: Option<&Given<'_>>,
) -> Result<Vec<(String, PgArguments)>, BoxDynError> {
    let mut bound = PgArguments::default();
    for parameter in parameters {
        match parameter {
            Parameter::One(kind, value) => bind_postgres(&mut bound, *kind, value)?,
            Parameter::List(kind, values) => bind_array(&mut bound, *kind, values)?,
        }
    }
    let Some(given) = given else { return Ok(vec![(text.to_owned(), bound)]) };
    if given.len == 0 {
        return Ok(vec![]);
    }
    let arrays = given.columns.iter().zip(parameters.len() + 1..);
    let arrays: Vec<String> = arrays.map(|((_, kind, _), n)| format!("${n}::{kind}[]")).collect();
    for (_, kind, cells) in &given.columns {
        bind_array(&mut bound, *kind, cells)?;
    }
    let (ordinality, place) = match speaks_of_place(text) {
        true => (" with ordinality", ", place"),
        false => ("", ""),
    };
    let table = format!("unnest({}){ordinality} as given ({}{place})", arrays.join(", "), names(given));
    Ok(vec![(text.replace("{given}", &table), bound)])
}

fn in_pieces(
    text: &str,
    parameters: &[Parameter<'_>],
    given: Option<&Given<'_>>,
) -> Result<Vec<(String, SqliteArguments)>, BoxDynError> {
    let Some(given) = given else {
        let mut bound = SqliteArguments::default();
        bind_all_sqlite(&mut bound, parameters)?;
        return Ok(vec![(for_sqlite(text, 0), bound)]);
    };
    let place = speaks_of_place(text);
    let mut pieces = Vec::new();
    let rows: Vec<usize> = (0..given.len).collect();
    for piece in sqlite::db::pieces(&rows) {
        let mut bound = SqliteArguments::default();
        for row in piece {
            for (.., cells) in &given.columns {
                bind_sqlite(&mut bound, &cells[*row])?;
            }
            if place {
                bind_sqlite(&mut bound, &Value::Int(*row as i64 + 1))?;
            }
        }
        // The rows' placeholders have no numbers, so they come first, and those of the text are counted from there.
        let cells = bound.len();
        bind_all_sqlite(&mut bound, parameters)?;
        pieces.push((with_values(given, piece.len(), place, &for_sqlite(text, cells)), bound));
    }
    Ok(pieces)
}

/// The statement, before it a table of so many rows.
fn with_values(given: &Given<'_>, size: usize, place: bool, text: &str) -> String {
    let columns = given.columns.len() + usize::from(place);
    let row = format!("({})", vec!["?"; columns].join(", "));
    let values = vec![row; size].join(", ");
    let place = if place { ", place" } else { "" };
    let (with, rest) = match text.trim_start().strip_prefix("with recursive ") {
        Some(rest) => ("with recursive", format!(", {rest}")),
        None => match text.trim_start().strip_prefix("with ") {
            Some(rest) => ("with", format!(", {rest}")),
            None => ("with", format!(" {text}")),
        },
    };
    format!("{with} given ({}{place}) as (values {values}){}", names(given), rest.replace("{given}", "given"))
}

fn names(given: &Given<'_>) -> String {
    given.columns.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ")
}

fn speaks_of_place(text: &str) -> bool {
    text.contains("place")
}

/// A statement in SQLite's words, with its parameters counted from `before + 1` on.
///
/// - Casts (`::uuid`) and locks (`for update`) are left out: SQLite has neither types that need the former nor a second writer.
/// - `= any($1)` and `<> all($1)` are `in` and `not in` a JSON array.
/// - `greatest`, `least` and `json_array_elements` have other names. The first two return null where an argument is null.
fn for_sqlite(text: &str, before: usize) -> String {
    const WORDS: [(&str, &str); 9] = [
        (" for update skip locked", ""),
        (" for no key update", ""),
        (" for update", ""),
        (" for share", ""),
        ("= any($", "in (select value from json_each($"),
        ("<> all($", "not in (select value from json_each($"),
        ("greatest(", "max("),
        ("least(", "min("),
        ("json_array_elements(", "json_each("),
    ];
    /// What one of the words, a text, a parameter or a cast may begin with: between them the text is copied as it is.
    const BEGINNINGS: [char; 9] = [' ', '=', '<', 'g', 'l', 'j', '\'', '$', ':'];
    let mut out = String::with_capacity(text.len() + 64);
    let mut rest = text;
    'text: while let Some(at) = rest.find(BEGINNINGS) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let next = rest.as_bytes()[0];
        for (word, other) in WORDS.iter().filter(|(word, _)| word.as_bytes()[0] == next) {
            let Some(after) = rest.strip_prefix(word) else { continue };
            let Some(other) = other.strip_suffix('$') else {
                out.push_str(other);
                rest = after;
                continue 'text;
            };
            let (number, after) = digits(after);
            // Both the function and the select are closed where PostgreSQL's operator is.
            let _ = write!(out, "{other}?{}))", number + before);
            rest = after.strip_prefix(')').unwrap_or(after);
            continue 'text;
        }
        rest = &rest[1..];
        match next {
            b'\'' => {
                let end = rest.find('\'').map_or(rest.len(), |at| at + 1);
                out.push('\'');
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            b'$' => {
                let (number, after) = digits(rest);
                let _ = write!(out, "?{}", number + before);
                rest = after;
            }
            b':' if rest.starts_with(':') => {
                let name = |c: char| c.is_ascii_alphanumeric() || "_[]".contains(c);
                rest = rest[1..].trim_start_matches(name);
            }
            other => out.push(char::from(other)),
        }
    }
    out.push_str(rest);
    out
}

fn digits(text: &str) -> (usize, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (text[..end].parse().unwrap_or_default(), &text[end..])
}

fn bind_array(bound: &mut PgArguments, kind: Kind, cells: &[Value<'_>]) -> Result<(), BoxDynError> {
    /// The cells as an array; `None` for null.
    macro_rules! array {
        ($value:pat => $cell:expr) => {
            cells
                .iter()
                .map(|cell| match cell {
                    $value => Some($cell),
                    _ => None,
                })
                .collect::<Vec<_>>()
        };
    }
    match kind {
        Kind::Int => bound.add(array!(Value::Int(number) => *number)),
        Kind::Bool => bound.add(array!(Value::Bool(yes) => *yes)),
        Kind::Text => bound.add(array!(Value::Text(text) => &**text)),
        Kind::Bytes => bound.add(array!(Value::Bytes(bytes) => &**bytes)),
        Kind::Id => bound.add(array!(Value::Id(id) => *id)),
        Kind::Time => bound.add(array!(Value::Time(at) => *at)),
        Kind::Money => bound.add(array!(Value::Money(amount) => *amount)),
    }
}

fn bind_postgres(bound: &mut PgArguments, kind: Kind, cell: &Value<'_>) -> Result<(), BoxDynError> {
    match cell {
        Value::Int(number) => bound.add(number),
        Value::Bool(yes) => bound.add(yes),
        Value::Text(text) => bound.add(&**text),
        Value::Bytes(bytes) => bound.add(&**bytes),
        Value::Id(id) => bound.add(id),
        Value::Time(at) => bound.add(at),
        Value::Money(amount) => bound.add(amount),
        Value::Null => match kind {
            Kind::Int => bound.add(None::<i64>),
            Kind::Bool => bound.add(None::<bool>),
            Kind::Text => bound.add(None::<&str>),
            Kind::Bytes => bound.add(None::<&[u8]>),
            Kind::Id => bound.add(None::<uuid::Uuid>),
            Kind::Time => bound.add(None::<crate::domain::time::Timestamp>),
            Kind::Money => bound.add(None::<rust_decimal::Decimal>),
        },
    }
}

fn bind_all_sqlite(bound: &mut SqliteArguments, parameters: &[Parameter<'_>]) -> Result<(), BoxDynError> {
    for parameter in parameters {
        match parameter {
            Parameter::One(_, value) => bind_sqlite(bound, value)?,
            Parameter::List(_, values) => bound.add(json_array(values)?)?,
        }
    }
    Ok(())
}

fn bind_sqlite(bound: &mut SqliteArguments, cell: &Value<'_>) -> Result<(), BoxDynError> {
    match cell {
        Value::Null => bound.add(None::<i64>),
        Value::Int(number) => bound.add(*number),
        Value::Bool(yes) => bound.add(*yes),
        Value::Text(text) => bound.add(&**text),
        Value::Bytes(bytes) => bound.add(&**bytes),
        Value::Id(id) => bound.add(id.to_string()),
        Value::Time(at) => bound.add(at.timestamp_millis()),
        Value::Money(amount) => bound.add(amount.to_string()),
    }
}

fn json_array(cells: &[Value<'_>]) -> Result<String, BoxDynError> {
    let cells = cells.iter().map(|cell| match cell {
        Value::Int(number) => Ok((*number).into()),
        Value::Text(text) => Ok((&**text).into()),
        Value::Id(id) => Ok(id.to_string().into()),
        other => Err(format!("a list of {other:?} has no form on SQLite")),
    });
    Ok(serde_json::Value::Array(cells.collect::<Result<_, _>>()?).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_put_into_sqlites_words() {
        for (postgres, sqlite) in [
            ("select a from t where id = $1 and b = $12", "select a from t where id = ?4 and b = ?15"),
            (
                "where id = any($2) and x <> all($1)",
                "where id in (select value from json_each(?5)) and x not in (select value from json_each(?4))",
            ),
            (
                "where ($2::uuid is null or id > $2) order by id for update skip locked",
                "where (?5 is null or id > ?5) order by id",
            ),
            ("select t::json, k::text[] from u for share", "select t, k from u"),
            ("set a = greatest(a, $1), b = least(b, 1)", "set a = max(a, ?4), b = min(b, 1)"),
            ("where a = 'it::s for update $1'", "where a = 'it::s for update $1'"),
        ] {
            assert_eq!(for_sqlite(postgres, 3), sqlite);
        }
    }

    #[test]
    fn rows_are_a_table_before_the_statement_on_sqlite_and_within_it_on_postgresql() {
        let items = [("a", 1_i64), ("b", 2)];
        let given = Given::of(&items).column("name", |i| i.0).column("number", |i| i.1).rows();
        let text = "insert into t (x, n, m) select $1, name, number from {given} order by place";
        let parameters = [Parameter::One(Kind::Int, Value::Int(7))];
        let on_postgres = for_postgres(text, &parameters, Some(&given)).unwrap();
        assert_eq!(
            on_postgres[0].0,
            "insert into t (x, n, m) select $1, name, number from \
             unnest($2::text[], $3::bigint[]) with ordinality as given (name, number, place) order by place"
        );
        let on_sqlite = in_pieces(text, &parameters, Some(&given)).unwrap();
        assert_eq!(on_sqlite.len(), 2, "two rows are two pieces of one");
        assert_eq!(
            on_sqlite[0].0,
            "with given (name, number, place) as (values (?, ?, ?)) \
             insert into t (x, n, m) select ?4, name, number from given order by place"
        );
    }

    #[test]
    fn every_row_is_in_one_piece() {
        let items: Vec<i64> = (0..131).collect();
        let given = Given::of(&items).column("n", |n| *n).rows();
        let pieces = in_pieces("select n from {given}", &[], Some(&given)).unwrap();
        let sizes: Vec<usize> = pieces.iter().map(|(_, bound)| bound.len()).collect();
        assert_eq!(sizes, [100, 25, 5, 1]);
        let none: [i64; 0] = [];
        let given = Given::of(&none).column("n", |n| *n).rows();
        assert!(in_pieces("select n from {given}", &[], Some(&given)).unwrap().is_empty());
        assert!(for_postgres("select n from {given}", &[], Some(&given)).unwrap().is_empty());
    }
}
