//! Finding customers: searching, listing, their timelines.

use serde::Serialize;
use serde_json::Value;

use crate::context::Context;
use crate::domain::customer360::{EventKey, StoredEvent, event_json};
use crate::domain::identity::Identifier;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::Profile;
use crate::domain::time::{Timestamp, iso};
use crate::ports::customer_search::{After, Search, Sort};
use crate::ports::store::StoreError;

/// The most customers, or events, of a page.
pub const MAX_PAGE: usize = 100;
/// The most customers that are looked at for one page of those with a trait: a page may be short, and still have a next.
pub const MAX_LOOKED_AT: usize = 5000;
/// Customers that are read at once to look for a trait.
const LOOK: i64 = 500;

/// A question for customers.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// What to look for; everybody, if absent.
    pub search: Option<Search>,
    /// Only those with this trait of this value.
    pub with_trait: Option<(String, Value)>,
    pub sort: Sort,
    /// Where the page before ended.
    pub after: Option<After>,
    pub limit: usize,
}

/// Understands what a person types: an e-mail address, a telephone number, the number of an order, a name - or the beginning
/// of one. `None` for nothing.
pub fn search(text: &str) -> Option<Search> {
    // U+0000 is in no text that is kept.
    let text = text.replace('\0', "");
    let text = text.trim();
    let lower = text.to_lowercase();
    if text.is_empty() {
        return None;
    }
    let number = text.strip_prefix('#').unwrap_or(text);
    let mut orders = vec![text.to_owned()];
    if !number.is_empty() && number.chars().all(|c| c.is_ascii_digit()) {
        orders.extend([format!("#{number}"), number.to_owned()]);
    }
    orders.sort();
    orders.dedup();
    let telephone =
        text.starts_with('+') && text.chars().skip(1).all(|c| c.is_ascii_digit() || " -./()".contains(c));
    let identifier = match telephone {
        true => text.chars().filter(|c| *c == '+' || c.is_ascii_digit()).collect(),
        false => lower.clone(),
    };
    Some(Search { identifier: Some(identifier), user_id: Some(text.to_owned()), name: Some(lower), orders })
}

/// A customer in a list.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Listed {
    /// The id of the profile, as paths name it.
    pub id: ProfileId,
    /// First and last name as they are written, where they are known.
    pub name: Option<String>,
    /// All identifiers that lead to the profile.
    pub identifiers: Vec<Identifier>,
    /// When the customer was first there.
    #[serde(with = "iso")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub first_seen: Option<Timestamp>,
    /// When the customer was last there.
    #[serde(with = "iso")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_seen: Option<Timestamp>,
    /// Events that took effect.
    pub events_count: i64,
    /// The limit that stopped the profile from merging further, if one did.
    pub limited: Option<String>,
}

/// A page of customers.
#[derive(Clone, Debug)]
pub struct Page {
    pub customers: Vec<Listed>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<After>,
}

/// A page of a brand's customers.
///
/// # Errors
/// The store's own.
#[tracing::instrument(name = "search_customers", skip_all, fields(brand = brand.0))]
pub async fn list(context: &Context, brand: BrandId, listing: &Listing) -> Result<Page, StoreError> {
    let limit = listing.limit.clamp(1, MAX_PAGE);
    let mut after = listing.after.clone();
    let mut found: Vec<Profile> = Vec::new();
    let mut looked_at = 0;
    let next = loop {
        let want = match &listing.with_trait {
            Some(_) => LOOK,
            None => limit as i64,
        };
        let page = context
            .customer_search
            .list(brand, listing.search.as_ref(), listing.sort, after.as_ref(), want)
            .await?;
        let last_page = (page.len() as i64) < want;
        looked_at += page.len();
        let mut full = None;
        for profile in page {
            after = Some(After::of(&profile));
            let fits = listing.with_trait.as_ref().is_none_or(|(name, value)| {
                profile.traits.get(name).is_some_and(|held| held.value == *value)
            });
            if fits {
                found.push(profile);
                if found.len() == limit {
                    full = after.clone();
                    break;
                }
            }
        }
        if full.is_some() {
            break full;
        }
        if last_page {
            break None;
        }
        if looked_at >= MAX_LOOKED_AT {
            break after;
        }
    };
    let ids: Vec<ProfileId> = found.iter().map(|profile| profile.id).collect();
    let mut identifiers = context.customer_search.identifiers(brand, &ids).await?;
    let customers = found
        .into_iter()
        .map(|profile| {
            let mut own: Vec<Identifier> =
                identifiers.extract_if(.., |(id, _)| *id == profile.id).map(|(_, own)| own).collect();
            own.sort();
            listed(profile, own)
        })
        .collect();
    Ok(Page { customers, next })
}

fn listed(profile: Profile, identifiers: Vec<Identifier>) -> Listed {
    let text = |name: &str| profile.traits.get(name).and_then(|held| held.value.as_str()).map(str::to_owned);
    let name = match (text("firstName"), text("lastName")) {
        (None, None) => text("name"),
        (first, last) => Some([first, last].into_iter().flatten().collect::<Vec<_>>().join(" ")),
    };
    Listed {
        id: profile.id,
        name,
        identifiers,
        first_seen: profile.first_seen,
        last_seen: profile.last_seen,
        events_count: profile.events_count,
        limited: profile.standing.limited,
    }
}

/// A page of a customer's events, newest first.
pub struct TimelinePage {
    /// As Customer360 lists them.
    pub events: Vec<Value>,
    /// The last event of this page; `None` after the last page.
    pub next: Option<EventKey>,
}

/// A page of a customer's events; `None` if this brand has no such customer.
///
/// # Errors
/// The store's own.
#[tracing::instrument(name = "timeline", skip_all, fields(brand = brand.0))]
pub async fn timeline(
    context: &Context,
    brand: BrandId,
    id: ProfileId,
    before: Option<&EventKey>,
    limit: usize,
) -> Result<Option<TimelinePage>, StoreError> {
    let Some(id) = context.customer_search.survivor(brand, id).await? else { return Ok(None) };
    let limit = limit.clamp(1, MAX_PAGE);
    let page = context.customer_search.timeline(brand, id, before, limit as i64).await?;
    let last = page.last().filter(|_| page.len() == limit);
    let next = last.map(StoredEvent::key);
    Ok(Some(TimelinePage { events: page.iter().map(event_json).collect(), next }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_is_understood() {
        let of = |text| search(text).unwrap();
        assert_eq!(search("  "), None);
        assert_eq!(of("Bob@Ex").identifier.as_deref(), Some("bob@ex"));
        assert_eq!(of("+49 (170) 12").identifier.as_deref(), Some("+4917012"));
        assert_eq!(of("1001").orders, ["#1001", "1001"]);
        assert_eq!(of("#1001").orders, ["#1001", "1001"]);
        assert_eq!(of("Norman B").name.as_deref(), Some("norman b"));
    }
}
