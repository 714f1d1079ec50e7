//! What decides between two reports of the same thing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What decides between two reports of the same thing: the newer time, then what came later within that time, then the greater message
/// id. The default is older than any report.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Version {
    /// When it was true, in milliseconds since 1970.
    pub at_ms: i64,
    /// What comes later within that time: for Shopify `X-Shopify-Triggered-At` in microseconds since 1970, whose `updated_at` are whole
    /// seconds; for a sender's message the microseconds that it gives beyond the milliseconds and its place in its batch.
    pub sequence: i64,
    /// The message that said so.
    pub message_id: String,
}

impl Version {
    /// A text that sorts as versions do, byte by byte. Times before 1970 are one.
    pub fn sortable(&self) -> String {
        format!("{:015}{:018}{}", self.at_ms.max(0), self.sequence.max(0), self.message_id)
    }
}

/// As it is written; before there were sequences, without one.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Without(i64, String),
    With(i64, i64, String),
}

impl From<Version> for Written {
    fn from(version: Version) -> Self {
        match version.sequence {
            0 => Self::Without(version.at_ms, version.message_id),
            sequence => Self::With(version.at_ms, sequence, version.message_id),
        }
    }
}

impl From<Written> for Version {
    fn from(written: Written) -> Self {
        match written {
            Written::Without(at_ms, message_id) => Self { at_ms, sequence: 0, message_id },
            Written::With(at_ms, sequence, message_id) => Self { at_ms, sequence, message_id },
        }
    }
}

/// Where the parts `P` of a state are from, of which a report may leave some out. Taken in in any sequence, reports come to the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions<P: Ord> {
    /// The newest report of any part.
    #[serde(rename = "v")]
    newest: Version,
    /// The parts that are from an older one, or that none has mentioned.
    #[serde(rename = "o", default = "BTreeMap::new", skip_serializing_if = "BTreeMap::is_empty")]
    older: BTreeMap<P, Version>,
}

impl<P: Ord> Default for Versions<P> {
    fn default() -> Self {
        Self { newest: Version::default(), older: BTreeMap::new() }
    }
}

impl<P: Ord + Copy> Versions<P> {
    /// Of a report that mentions all parts but those.
    pub fn stated(version: Version, left_out: &[P]) -> Self {
        Self { newest: version, older: left_out.iter().map(|part| (*part, Version::default())).collect() }
    }

    /// The newest report, and the parts that are from older ones.
    pub fn new(newest: Version, older: BTreeMap<P, Version>) -> Self {
        Self { newest, older }
    }

    /// The parts that are from an older report than the newest, or that none has mentioned.
    pub fn older(&self) -> &BTreeMap<P, Version> {
        &self.older
    }

    /// The report that a part is from; the default where none has mentioned it.
    pub fn of(&self, part: P) -> &Version {
        self.older.get(&part).unwrap_or(&self.newest)
    }

    /// Whether any report has mentioned the part.
    pub fn tell(&self, part: P) -> bool {
        *self.of(part) != Version::default()
    }

    pub fn newest(&self) -> &Version {
        &self.newest
    }

    /// What a part is from, as text that sorts; empty where none has mentioned it.
    pub fn sortable(&self, part: P) -> String {
        if self.tell(part) { self.of(part).sortable() } else { String::new() }
    }

    /// Takes in another report's, of which `take` is told the parts that are newer there.
    pub fn take_in(&mut self, other: &Self, all: &[P], mut take: impl FnMut(P)) {
        let newest = (&self.newest).max(&other.newest).clone();
        let mut older = BTreeMap::new();
        for part in all {
            let (held, stated) = (self.of(*part), other.of(*part));
            if stated > held {
                take(*part);
            }
            let newer = held.max(stated);
            if *newer != newest {
                older.insert(*part, newer.clone());
            }
        }
        *self = Self { newest, older };
    }

    /// Changes each version that stands here.
    pub fn each(&mut self, change: impl Fn(&mut Version)) {
        for version in self.older.values_mut().chain([&mut self.newest]) {
            if *version != Version::default() {
                change(version);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_written_as_before_and_sort_as_text() {
        let of = |at_ms, sequence, id: &str| Version { at_ms, sequence, message_id: id.into() };
        let versions = [of(1, 0, "b"), of(1, 5, "a"), of(2, 0, ""), of(10, 0, "")];
        for version in &versions {
            let text = serde_json::to_string(version).unwrap();
            assert_eq!(serde_json::from_str::<Version>(&text).unwrap(), *version);
        }
        assert_eq!(serde_json::to_string(&versions[0]).unwrap(), r#"[1,"b"]"#);
        assert!(versions.is_sorted());
        assert!(versions.map(|version| version.sortable()).is_sorted());
    }
}
