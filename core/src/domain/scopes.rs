//! What a secret key may do.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing that a secret key may be allowed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Look at customers, segments, automations, runs and queues.
    Read,
    /// Change segments and automations, merge and split customers, retry and discard dead letters; send events.
    Write,
    /// Take out all that is held on a customer.
    Export,
    /// Erase customers, and lift suppressions.
    Privacy,
    /// Keys, settings, the signing secret, the audit log.
    Admin,
}

impl Scope {
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Export, Self::Privacy, Self::Admin];

    /// The name in the stores, over HTTP and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Export => "export",
            Self::Privacy => "privacy",
            Self::Admin => "admin",
        }
    }

    /// The scope of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == name)
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// None at all: a write key has these.
    pub const NONE: Self = Self(0);

    pub fn all() -> Self {
        Scope::ALL.into_iter().collect()
    }

    /// Whether the scope is among them.
    pub fn has(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// Those that `other` has and these have not.
    pub fn lacking(self, other: Self) -> Self {
        Self(other.0 & !self.0)
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The scopes, in their order.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.has(*scope))
    }

    /// Reads names apart by spaces or commas; `Err` with the first that is no scope.
    ///
    /// # Errors
    /// The name that is unknown.
    pub fn parse(text: &str) -> Result<Self, String> {
        let names = text.split([' ', ',']).filter(|name| !name.is_empty());
        names.map(|name| Scope::parse(name).ok_or_else(|| name.to_owned())).collect()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<T: IntoIterator<Item = Scope>>(scopes: T) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(Scope::as_str).collect();
        f.write_str(&names.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_read_as_it_is_written() {
        let some: Scopes = [Scope::Privacy, Scope::Read].into_iter().collect();
        assert_eq!(some.to_string(), "read privacy");
        assert_eq!(Scopes::parse("privacy,read").unwrap(), some);
        assert_eq!(Scopes::parse(&Scopes::all().to_string()).unwrap(), Scopes::all());
        assert_eq!(Scopes::parse("").unwrap(), Scopes::NONE);
        assert_eq!(Scopes::parse("read,everything").unwrap_err(), "everything");
        assert!(some.has(Scope::Read) && !some.has(Scope::Admin));
        assert_eq!(some.lacking(Scopes::all()).to_string(), "write export admin");
        assert!(Scopes::all().lacking(some).is_empty());
    }
}
