//! How a column's type stands on each store: PostgreSQL has types for ids, times and money, SQLite has text and integers.
//!
//! [`Cell`] is what may be bound, the types below and the domain's own ids are what may be read.

use std::borrow::Cow;
use std::fmt;

use rust_decimal::Decimal;
use serde::de::DeserializeOwned;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef};
use sqlx::sqlite::{SqliteTypeInfo, SqliteValueRef};
use sqlx::{Decode, Postgres, Sqlite, Type, TypeInfo};
use uuid::Uuid;

use crate::domain::automation::run::{ActionStatus, Status};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::scopes::Scopes;
use crate::domain::time::{Timestamp, from_ms};
use crate::ports::automations::AutomationStatus;
use crate::ports::brands::KeyKind;

/// The types that columns have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::adapters) enum Kind {
    Int,
    Bool,
    Text,
    Bytes,
    Id,
    Time,
    Money,
}

/// What is bound to a statement.
#[derive(Clone, Debug)]
pub(in crate::adapters) enum Value<'v> {
    Null,
    Int(i64),
    Bool(bool),
    Text(Cow<'v, str>),
    Bytes(Cow<'v, [u8]>),
    Id(Uuid),
    Time(Timestamp),
    Money(Decimal),
}

/// What has a type that a column may have.
pub(in crate::adapters) trait Cell<'v> {
    /// Its type, which a null has, too.
    const KIND: Kind;
    fn value(self) -> Value<'v>;
}

impl<'v, C: Cell<'v>> Cell<'v> for Option<C> {
    const KIND: Kind = C::KIND;
    fn value(self) -> Value<'v> {
        self.map_or(Value::Null, C::value)
    }
}

macro_rules! cells {
    ($($type:ty: $kind:ident, |$cell:ident| $value:expr;)+) => {$(
        impl<'v> Cell<'v> for $type {
            const KIND: Kind = Kind::$kind;
            fn value(self) -> Value<'v> {
                let $cell = self;
                Value::$kind($value)
            }
        }
    )+};
}

cells! {
    i64: Int, |number| number;
    i32: Int, |number| number.into();
    i16: Int, |number| number.into();
    u32: Int, |number| number.into();
    bool: Bool, |yes| yes;
    &'v str: Text, |text| text.into();
    &'v String: Text, |text| text.as_str().into();
    String: Text, |text| text.into();
    &'v [u8]: Bytes, |bytes| bytes.into();
    Vec<u8>: Bytes, |bytes| bytes.into();
    Uuid: Id, |id| id;
    &Uuid: Id, |id| *id;
    ProfileId: Id, |id| id.0;
    BrandId: Int, |brand| brand.0;
    Timestamp: Time, |at| at;
    Decimal: Money, |amount| amount;
    Status: Text, |status| status.as_str().into();
    ActionStatus: Text, |status| status.as_str().into();
    AutomationStatus: Text, |status| status.as_str().into();
}

/// A time: `timestamptz`, or milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(in crate::adapters) struct Time(pub(in crate::adapters) Timestamp);

/// An amount of money: `numeric`, or a decimal as text.
#[derive(Clone, Copy, Debug)]
pub(in crate::adapters) struct Money(pub(in crate::adapters) Decimal);

/// An id: `uuid`, or text with hyphens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::adapters) struct Id(pub(in crate::adapters) Uuid);

/// A number that is never negative: `integer`.
#[derive(Clone, Copy, Debug)]
pub(in crate::adapters) struct Count(pub(in crate::adapters) u32);

/// JSON as it was written, byte for byte: `json` or `text`.
#[derive(Clone, Debug)]
pub(in crate::adapters) struct Text(pub(in crate::adapters) String);

/// JSON, read: `json` or `text`.
#[derive(Clone, Debug)]
pub(in crate::adapters) struct Json<T>(pub(in crate::adapters) T);

/// A type that is read of another of each store's.
macro_rules! decoded {
    ($type:ty, $postgres:ty, |$pg:ident| $of_postgres:expr, $sqlite:ty, |$lite:ident| $of_sqlite:expr) => {
        impl Type<Postgres> for $type {
            fn type_info() -> PgTypeInfo {
                <$postgres as Type<Postgres>>::type_info()
            }
            fn compatible(ty: &PgTypeInfo) -> bool {
                <$postgres as Type<Postgres>>::compatible(ty)
            }
        }

        impl Decode<'_, Postgres> for $type {
            fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
                let $pg = <$postgres as Decode<Postgres>>::decode(value)?;
                $of_postgres
            }
        }

        impl Type<Sqlite> for $type {
            fn type_info() -> SqliteTypeInfo {
                <$sqlite as Type<Sqlite>>::type_info()
            }
            fn compatible(ty: &SqliteTypeInfo) -> bool {
                <$sqlite as Type<Sqlite>>::compatible(ty)
            }
        }

        impl Decode<'_, Sqlite> for $type {
            fn decode(value: SqliteValueRef<'_>) -> Result<Self, BoxDynError> {
                let $lite = <$sqlite as Decode<Sqlite>>::decode(value)?;
                $of_sqlite
            }
        }
    };
}

decoded!(Time, Timestamp, |at| Ok(Self(at)), i64, |ms| Ok(Self(from_ms(ms))));
decoded!(Count, i32, |count| Ok(Self(count.try_into()?)), i32, |count| Ok(Self(count.try_into()?)));
decoded!(Money, Decimal, |amount| Ok(Self(amount)), &str, |text| Ok(Self(text.parse()?)));
decoded!(Id, Uuid, |id| Ok(Self(id)), &str, |text| Ok(Self(text.parse()?)));
decoded!(ProfileId, Uuid, |id| Ok(Self(id)), &str, |text| Ok(Self(text.parse()?)));
decoded!(BrandId, i64, |id| Ok(Self(id)), i64, |id| Ok(Self(id)));

/// A type that has a name in the stores.
macro_rules! named {
    ($($type:ty),+) => {$(
        decoded!($type, &str, |name| read_name(name, Self::parse), &str, |name| read_name(name, Self::parse));
    )+};
}

named!(Status, ActionStatus, AutomationStatus, KeyKind);
decoded!(Scopes, &str, |names| Ok(Self::parse(names)?), &str, |names| Ok(Self::parse(names)?));

fn read_name<T>(name: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, BoxDynError> {
    parse(name).ok_or_else(|| {
        format!("{name:?} is no {} that this version knows", std::any::type_name::<T>()).into()
    })
}

/// PostgreSQL's binary form of `json` is its text, as that of `text` is.
fn is_text(ty: &PgTypeInfo) -> bool {
    ty.name() == "JSON" || <&str as Type<Postgres>>::compatible(ty)
}

impl Type<Postgres> for Text {
    fn type_info() -> PgTypeInfo {
        <&str as Type<Postgres>>::type_info()
    }
    fn compatible(ty: &PgTypeInfo) -> bool {
        is_text(ty)
    }
}

impl Decode<'_, Postgres> for Text {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        Ok(Self(<String as Decode<Postgres>>::decode(value)?))
    }
}

impl Type<Sqlite> for Text {
    fn type_info() -> SqliteTypeInfo {
        <&str as Type<Sqlite>>::type_info()
    }
}

impl Decode<'_, Sqlite> for Text {
    fn decode(value: SqliteValueRef<'_>) -> Result<Self, BoxDynError> {
        Ok(Self(<String as Decode<Sqlite>>::decode(value)?))
    }
}

impl<T> Type<Postgres> for Json<T> {
    fn type_info() -> PgTypeInfo {
        <&str as Type<Postgres>>::type_info()
    }
    fn compatible(ty: &PgTypeInfo) -> bool {
        is_text(ty)
    }
}

impl<T: DeserializeOwned> Decode<'_, Postgres> for Json<T> {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        Ok(Self(serde_json::from_str(<&str as Decode<Postgres>>::decode(value)?)?))
    }
}

impl<T> Type<Sqlite> for Json<T> {
    fn type_info() -> SqliteTypeInfo {
        <&str as Type<Sqlite>>::type_info()
    }
}

impl<T: DeserializeOwned> Decode<'_, Sqlite> for Json<T> {
    fn decode(value: SqliteValueRef<'_>) -> Result<Self, BoxDynError> {
        Ok(Self(serde_json::from_str(<&str as Decode<Sqlite>>::decode(value)?)?))
    }
}

impl fmt::Display for Kind {
    /// PostgreSQL's name of the type.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Int => "bigint",
            Self::Bool => "boolean",
            Self::Text => "text",
            Self::Bytes => "bytea",
            Self::Id => "uuid",
            Self::Time => "timestamptz",
            Self::Money => "numeric",
        })
    }
}
