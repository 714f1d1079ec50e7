//! Who a customer is: identifiers, their normal forms, and the grouping of events that share one.
//!
//! The rule is flat: events that share an identifier, directly or through others, are one customer. Grouping by that
//! relation does not depend on the order in which events arrive.

//!
//! [`Rules`] say what may identify at all; `prune` keeps profiles within `Limits` by leaving out the least trusted links.
//! Where a limit holds, what came first stays: there, and only there, the grouping depends on the order.

mod group;
mod identifier;
mod prune;
mod standing;

pub use self::group::{Group, group};
pub use self::identifier::{Identifier, IdentifierKind, KINDS, MAX_IDENTIFIER_CHARS, Rules, country_of};
pub use self::prune::{Held, Linking, Pruned, Refusal, disowned, people, prune};
pub use self::standing::{Counts, Standing, Tally, over_limit};

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use super::*;
    use crate::domain::ids::ProfileId;
    use crate::domain::settings::Limits;

    #[test]
    fn values_are_brought_to_one_form() {
        let cases = [
            (IdentifierKind::Email, " Bob.Norman@HostMail.com ", Some("bob.norman@hostmail.com")),
            (IdentifierKind::Email, "mi\u{212a}e@x.example", Some("mi\u{212a}e@x.example")),
            (IdentifierKind::Email, "Ada@B\u{dc}CHER.example", Some("ada@xn--bcher-kva.example")),
            (IdentifierKind::Email, "ada@xn--bcher-kva.example", Some("ada@xn--bcher-kva.example")),
            (IdentifierKind::Email, "\u{130}stanbul@x.example", Some("\u{130}stanbul@x.example")),
            (IdentifierKind::Email, "ada@shop.example\u{200b}", Some("ada@shop.example")),
            (IdentifierKind::Email, "not an address", None),
            (IdentifierKind::CartToken, "hWN1aB?key=k7p2", Some("hWN1aB")),
            (IdentifierKind::CartToken, "gid://shopify/Cart/hWN1aB?key=k7p2", Some("hWN1aB")),
            (IdentifierKind::CartToken, "?key=k7p2", None),
            (IdentifierKind::CheckoutToken, "abc", Some("abc")),
            (IdentifierKind::ShopifyCustomerId, "gid://shopify/Customer/7", Some("7")),
            (IdentifierKind::ShopifyCustomerId, "7", Some("7")),
            (IdentifierKind::Email, "null@example.com", None),
            (IdentifierKind::Email, "bob@localhost", None),
            (IdentifierKind::Phone, "+1 (502) 555-1199", Some("+15025551199")),
            (IdentifierKind::Phone, "0049 170 1234567", Some("+491701234567")),
            (IdentifierKind::Phone, "555-625-1199", None),
            (IdentifierKind::Phone, "+0 000 000 000", None),
            (IdentifierKind::UserId, " u1 ", Some("u1")),
            (IdentifierKind::UserId, "a\0b", Some("ab")),
        ];
        for (kind, raw, wanted) in cases {
            assert_eq!(Identifier::new(kind, raw).map(|i| i.value).as_deref(), wanted, "{kind:?} {raw:?}");
        }
    }

    #[test]
    fn placeholders_identify_nobody() {
        for raw in [
            "",
            "  ",
            "null",
            "NULL",
            "undefined",
            "-1",
            "0",
            "000-000",
            "00000000-0000-0000-0000-000000000000",
            "anonymous",
            "[object Object]",
            "not_authenticated",
            "\"undefined\"",
            "'guest'",
            "distinct_id",
            "{{ customer.id }}",
            "${user.id}",
        ] {
            assert_eq!(Identifier::new(IdentifierKind::AnonymousId, raw), None, "{raw:?}");
        }
        assert_eq!(Identifier::new(IdentifierKind::UserId, &"x".repeat(MAX_IDENTIFIER_CHARS + 1)), None);
    }

    #[test]
    fn sharing_an_identifier_or_an_owner_makes_one_group() {
        let old = ProfileId::first_at(1);
        let young = ProfileId::first_at(2);
        // 0-1 share identifier 1; event 2 joins them through an owner; event 3 stands alone; event 4 is nobody's.
        let events = [vec![0, 1], vec![1, 2], vec![3], vec![4], vec![]];
        let owners = [None, Some(young), Some(old), Some(young), None];
        let groups = group(&events, &owners);
        assert_eq!(groups.len(), 2);
        assert_eq!(groups[0].events, [0, 1, 2]);
        assert_eq!(groups[0].identifiers, [0, 1, 2, 3]);
        assert_eq!(groups[0].owners.first(), Some(&old));
        assert_eq!((groups[1].events.as_slice(), groups[1].identifiers.as_slice()), (&[3][..], &[4][..]));
    }

    #[test]
    fn a_public_word_makes_no_two_people_one_and_a_trusted_one_takes_back_what_it_gave() {
        // The first owns 0 (trusted) and 1 (by a public key's word), the second 2 (trusted), somebody unknown 4 and 5; 3 is free.
        let owners = [ProfileId::first_at(1), ProfileId::first_at(2), ProfileId::first_at(3)];
        let of =
            |kind, owner: Option<usize>, trusted| Held { kind, owner: owner.map(|at| owners[at]), trusted };
        let held = [
            of(IdentifierKind::Email, Some(0), true),
            of(IdentifierKind::AnonymousId, Some(0), false),
            of(IdentifierKind::Email, Some(1), true),
            of(IdentifierKind::Phone, None, false),
            of(IdentifierKind::UserId, Some(2), false),
            of(IdentifierKind::AnonymousId, Some(2), false),
        ];
        let known = |id: ProfileId| owners[..2].contains(&id);
        let people_of = |firm: &[Vec<usize>]| people(firm.iter().map(Vec::as_slice), &held, known);
        let taken = |firm: &[Vec<usize>]| disowned(firm.iter().map(Vec::as_slice), &held, known);
        // Nobody trusted links the two: they are two people. An event that does makes them one.
        assert_eq!((people_of(&[]), people_of(&[vec![0, 3]]), people_of(&[vec![0, 2]])), (2, 2, 1));
        // Somebody new.
        assert_eq!(people_of(&[vec![3]]), 3);
        // What the first has by a public word goes to the second, if a trusted source says so; not if it says it of both.
        assert_eq!(taken(&[vec![1, 2]]), BTreeSet::from([1]));
        assert_eq!((taken(&[vec![0, 1]]), taken(&[vec![0, 1], vec![1, 2]])), <_>::default());
        // Whom nobody trusted knew is one of the two people that are named now, not both.
        assert_eq!((taken(&[vec![3, 4]]).len(), taken(&[vec![3, 4], vec![5]])), (0, BTreeSet::from([5])));
        let limits = Limits::default();
        let known = Standing { known: true, ..Standing::default() };
        let standing: HashMap<ProfileId, Standing> =
            owners[..2].iter().map(|id| (*id, known.clone())).collect();
        let pruned = |identifiers: &[usize], firm| {
            prune(&[Linking { identifiers, firm, limits: &limits }], &held, &standing, &BTreeSet::new())
        };
        let public = pruned(&[0, 2, 3], false);
        assert_eq!(public.of_event, [vec![0, 3]], "it stays with its most trusted identifier");
        assert_eq!(public.refused.len(), 1);
        assert!(pruned(&[0, 2, 3], true).refused.is_empty());
    }
}
