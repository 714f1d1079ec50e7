//! The tables whose rows belong to customers, each once: merges, splits and erasures go through this list, and it says of each where
//! an export has its rows. `core/tests/doors.rs` compares it with both stores' schemas and with an export, so that a new table cannot be
//! forgotten.

use super::database::Tx;
use super::statement::Given;
use crate::domain::ids::ProfileId;
use crate::ports::store::{Move, StoreError};

/// A table whose rows belong to customers.
#[derive(Debug)]
pub struct Owned {
    pub table: &'static str,
    /// The columns that name a customer's profile: a row belongs to each that is named.
    pub owners: &'static [&'static str],
    merge: OnMerge,
    split: OnSplit,
    erase: OnErase,
    /// The member of an export that has its rows; `None` for what says nothing that another member does not say.
    pub exported: Option<&'static str>,
}

/// What a merge does with the rows of the profile that is absorbed.
#[derive(Clone, Copy, Debug)]
enum OnMerge {
    /// They go to the survivor; besides, this is set.
    Move(&'static str),
    /// The survivor gets those that it does not have.
    Unite,
    /// They are deleted: they are computed again.
    Delete,
    /// A relation follows its profile; one between two that are one now is over.
    Relate,
    /// They stay: they record what was.
    Keep,
}

/// What a split does with the rows that came to a profile first which is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnSplit {
    /// They go back; besides, this is set. The table has the column `origin`.
    GiveBack(&'static str),
    /// They stay with the survivor.
    Keep,
}

/// What an erasure does.
#[derive(Clone, Copy, Debug)]
enum OnErase {
    /// Their rows are deleted.
    Delete,
    /// Their rows are deleted, before all others, and returned: what was known of them is suppressed.
    DeleteFirst,
    /// They lose their owner and what would lead to one.
    Detach(&'static str),
}

/// All tables whose rows belong to customers, in the order in which they are erased.
pub const OWNED: &[Owned] = &[
    Owned {
        table: "identifiers",
        owners: &["profile_id"],
        // One that came first to a profile which was erased since counts as the survivor's own.
        merge: OnMerge::Move(
            ", origin = case when exists (select 1 from profiles where profiles.id = identifiers.origin)
                then identifiers.origin else given.target end",
        ),
        split: OnSplit::GiveBack(""),
        erase: OnErase::DeleteFirst,
        exported: Some("customer"),
    },
    Owned {
        table: "events",
        owners: &["profile_id"],
        merge: OnMerge::Move(""),
        split: OnSplit::GiveBack(""),
        erase: OnErase::Delete,
        exported: Some("events"),
    },
    Owned {
        table: "orders",
        owners: &["profile_id"],
        // Whoever has read an order before must read it again.
        merge: OnMerge::Move(", version = orders.version + 1"),
        split: OnSplit::GiveBack(", version = version + 1"),
        erase: OnErase::Detach(
            "profile_id = null, origin = null, fulfillments = '{}', erased = true, version = version + 1",
        ),
        exported: Some("orders"),
    },
    Owned {
        table: "consents",
        owners: &["profile_id"],
        merge: OnMerge::Move(""),
        split: OnSplit::GiveBack(""),
        erase: OnErase::Delete,
        exported: Some("consents"),
    },
    Owned {
        table: "merges",
        owners: &["survivor", "loser"],
        merge: OnMerge::Keep,
        split: OnSplit::Keep,
        erase: OnErase::Delete,
        exported: Some("merges"),
    },
    Owned {
        table: "relations",
        owners: &["a", "b"],
        merge: OnMerge::Relate,
        split: OnSplit::Keep,
        erase: OnErase::Delete,
        exported: Some("customer"),
    },
    Owned {
        table: "profiles",
        owners: &["id"],
        merge: OnMerge::Keep,
        split: OnSplit::Keep,
        erase: OnErase::Delete,
        exported: Some("customer"),
    },
    Owned {
        table: "segment_members",
        owners: &["profile_id"],
        // Who is one now enters nothing that either belonged to; what they belong to is evaluated again.
        merge: OnMerge::Unite,
        split: OnSplit::Keep,
        erase: OnErase::Delete,
        exported: Some("segments"),
    },
    Owned {
        table: "segment_changes",
        owners: &["profile_id"],
        merge: OnMerge::Move(""),
        split: OnSplit::Keep,
        erase: OnErase::Delete,
        exported: Some("segments"),
    },
    Owned {
        table: "segment_checks",
        owners: &["profile_id"],
        merge: OnMerge::Delete,
        split: OnSplit::Keep,
        erase: OnErase::Delete,
        exported: None,
    },
    Owned {
        table: "automation_runs",
        owners: &["profile_id"],
        merge: OnMerge::Move(""),
        split: OnSplit::Keep,
        erase: OnErase::Delete,
        exported: Some("automation_runs"),
    },
    Owned {
        table: "automation_actions",
        owners: &["profile_id"],
        merge: OnMerge::Move(""),
        split: OnSplit::Keep,
        erase: OnErase::Delete,
        exported: Some("automation_actions"),
    },
];

impl Owned {
    /// Whose rows belong to one of the profiles that are the statement's parameter `$1`.
    fn is_theirs(&self) -> String {
        self.owners.iter().map(|owner| format!("{owner} = any($1)")).collect::<Vec<_>>().join(" or ")
    }
}

/// Moves what profiles own to those that they are merged into; relations, where there are any.
pub(super) async fn merge(tx: &mut Tx, moves: &[Move], related: bool) -> Result<(), StoreError> {
    let given = Given::of(moves).column("source", |m| m.from).column("target", |m| m.into).rows();
    let from = || moves.iter().map(|m| m.from);
    for owned in OWNED {
        let table = owned.table;
        let delete = || format!("delete from {table} where {}", owned.is_theirs());
        match owned.merge {
            OnMerge::Move(also) => {
                // The list says the same once more: without statistics PostgreSQL would read the whole table beside the given rows.
                let moved = format!(
                    "update {table} set profile_id = given.target{also} from {{given}}
                    where {table}.profile_id = given.source and {table}.profile_id = any($1)"
                );
                tx.sql(moved).list(from()).given(&given).run().await?;
            }
            OnMerge::Unite => {
                tx.sql(
                    "insert into segment_members (brand_id, segment, profile_id, since_ms)
                    select brand_id, segment, given.target, since_ms from {given}
                    join segment_members on profile_id = given.source where profile_id = any($1) on conflict do nothing",
                )
                .list(from())
                .given(&given)
                .run()
                .await?;
                tx.sql(delete()).list(from()).run().await?;
            }
            OnMerge::Delete => {
                tx.sql(delete()).list(from()).run().await?;
            }
            OnMerge::Relate if related => {
                tx.sql(
                    "with moved as (select source, target from {given})
                    insert into relations (a, b, brand_id, kind, reason, at)
                    select least(a, b), greatest(a, b), brand_id, kind, reason, at from (
                        select coalesce(of_a.target, r.a) as a, coalesce(of_b.target, r.b) as b, r.brand_id, r.kind, r.reason, r.at
                        from relations as r
                        left join moved as of_a on of_a.source = r.a
                        left join moved as of_b on of_b.source = r.b
                        where r.a = any($1) or r.b = any($1)) as now
                    where a <> b on conflict do nothing",
                )
                .list(from())
                .given(&given)
                .run()
                .await?;
                tx.sql(delete()).list(from()).run().await?;
            }
            OnMerge::Relate | OnMerge::Keep => {}
        }
    }
    Ok(())
}

/// Rows that were given back.
#[derive(Default)]
pub(super) struct Returned {
    /// Kind and value of each identifier.
    pub(super) identifiers: Vec<(String, String)>,
    pub(super) events: u64,
    pub(super) orders: u64,
}

/// Gives back to `to` what came first to it, or to who was merged into it before, and belongs to `from` now.
pub(super) async fn split(tx: &mut Tx, from: ProfileId, to: ProfileId) -> Result<Returned, StoreError> {
    let mut returned = Returned::default();
    for Owned { table, split, .. } in OWNED {
        let OnSplit::GiveBack(also) = split else { continue };
        // Those who were merged into it before go along.
        let back = format!(
            "with recursive tree as (
                select $2::uuid as id union select p.id from profiles p join tree on p.merged_into = tree.id)
            update {table} set profile_id = $2{also} where profile_id = $1 and origin in (select id from tree)"
        );
        let statement = tx.sql(back).bind(from).bind(to);
        match *table {
            "identifiers" => {
                returned.identifiers = statement.push(" returning kind, value").all().await?;
            }
            "events" => returned.events = statement.run().await?,
            "orders" => returned.orders = statement.run().await?,
            _ => {
                statement.run().await?;
            }
        }
    }
    Ok(returned)
}

/// What an erasure has deleted.
#[derive(Default)]
pub(super) struct Deleted {
    pub(super) events: u64,
    /// Orders that have no customer any more.
    pub(super) orders: u64,
}

/// Deletes profiles' identifiers, also those that were claimed under `claimed`. Returns their kinds and values.
pub(super) async fn erase_first(
    tx: &mut Tx,
    ids: &[ProfileId],
    claimed: ProfileId,
) -> Result<Vec<(String, String)>, StoreError> {
    let mut deleted = Vec::new();
    for owned in OWNED.iter().filter(|owned| matches!(owned.erase, OnErase::DeleteFirst)) {
        let delete = format!("delete from {} where {} returning kind, value", owned.table, owned.is_theirs());
        let theirs = ids.iter().copied().chain([claimed]);
        deleted.append(&mut tx.sql(delete).list(theirs).all().await?);
    }
    Ok(deleted)
}

/// Deletes all else that profiles own, and what is about their orders.
pub(super) async fn erase_rest(tx: &mut Tx, ids: &[ProfileId]) -> Result<Deleted, StoreError> {
    let mut deleted = Deleted::default();
    // Before the orders lose their owner: what webhooks said of them alone belongs to nobody, and is theirs all the same.
    let of_orders = "delete from events where profile_id is null and order_id is not null and (brand_id, shop, order_id) in (
            select o.brand_id, o.shop, o.id from orders o where o.profile_id = any($1))";
    deleted.events += tx.sql(of_orders).list(ids.iter().copied()).run().await?;
    for owned in OWNED {
        let table = owned.table;
        let erase = match owned.erase {
            OnErase::Delete => format!("delete from {table} where {}", owned.is_theirs()),
            OnErase::Detach(set) => format!("update {table} set {set} where {}", owned.is_theirs()),
            OnErase::DeleteFirst => continue,
        };
        let rows = tx.sql(erase).list(ids.iter().copied()).run().await?;
        match table {
            "events" => deleted.events += rows,
            "orders" => deleted.orders += rows,
            _ => {}
        }
    }
    Ok(deleted)
}
