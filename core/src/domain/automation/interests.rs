//! Which events a brand's segments and automations have to hear of. Most events concern none of them, and cost nothing more.

use std::collections::BTreeSet;

use super::definition::Trigger;
use super::expression::Expression;
use super::plan::Plan;
use super::segment::Segment;
use crate::domain::event::Event;

/// What a brand's segments and automations listen to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interests {
    /// Events of these names: they start runs, end them, or are waited for.
    names: BTreeSet<String>,
    everything: bool,
    traits: bool,
    orders: bool,
    consent: bool,
    /// Whatever brings a new identifier, so any event that has one.
    identifiers: bool,
}

impl Interests {
    /// Those of a brand.
    pub fn of<'a>(
        segments: impl IntoIterator<Item = &'a Segment>,
        plans: impl IntoIterator<Item = &'a Plan>,
    ) -> Self {
        let mut all = Self::default();
        for segment in segments {
            all.listen(&segment.expression);
        }
        for plan in plans {
            if let Trigger::Event { event, .. } = &plan.definition.trigger {
                all.names.insert(event.clone());
            }
            all.names.extend(plan.cancelling().map(str::to_owned));
            all.names.extend(plan.awaited().map(str::to_owned));
        }
        all
    }

    fn listen(&mut self, expression: &Expression) {
        self.everything |= expression.references("events") || expression.references("seen");
        self.traits |= expression.references("traits") || expression.references("tags");
        self.orders |= ["orders", "revenue", "rfm"].iter().any(|own| expression.references(own));
        self.consent |= expression.references("consent");
        self.identifiers |= expression.references("email") || expression.references("phone");
    }

    /// Whether an event concerns any of them.
    pub fn concern(&self, event: &Event) -> bool {
        self.everything
            || (self.traits && !event.traits.is_empty())
            || (self.orders && event.order.is_some())
            || (self.consent && !event.consents.is_empty())
            || (self.identifiers && event.identifiers.iter().any(|identifier| identifier.kind.is_personal()))
            || event.name.as_ref().is_some_and(|name| self.names.contains(name))
    }

    /// Whether anything is listened to: then a merge concerns them, too.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}
