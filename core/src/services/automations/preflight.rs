//! What would make an automation's steps fail, found before it is activated.
//!
//! The API's process does not know how automations reach the world outside: the workers do. Each says so in the cache, now and then.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::context::Context;
use crate::domain::addresses::Reach;
use crate::domain::automation::definition::Action;
use crate::domain::automation::plan::{Op, Plan};
use crate::services::automations::runs::Outbound;

/// How often workers say what they can.
pub const SAID_EVERY: Duration = Duration::from_secs(15);
/// How long that is believed.
const BELIEVED: Duration = Duration::from_secs(60);
/// How long the cache may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// Where it is said: it is no brand's.
const KEY: &str = "0:automation-workers";

/// What automation workers can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    /// They have an SMTP server.
    pub mail: bool,
    /// They know where customers reach this system.
    pub public_url: bool,
    pub reach: Reach,
}

impl Abilities {
    /// Those of a worker.
    pub fn of(outbound: &Outbound) -> Self {
        Self { mail: outbound.sends_mail, public_url: outbound.public_url.is_some(), reach: outbound.reach }
    }
}

/// Says what this worker can do. Where the cache is unavailable, nobody hears of it.
pub async fn report_abilities(context: &Context, abilities: Abilities) {
    let said = serde_json::to_vec(&abilities).unwrap_or_default().into();
    let _ = context.world.timeout(PATIENCE, context.cache.put(KEY, said, BELIEVED)).await;
}

/// What the worker that spoke last can do; `None` where none has for a minute.
pub async fn reported_abilities(context: &Context) -> Option<Abilities> {
    let said = context.world.timeout(PATIENCE, context.cache.get(KEY)).await;
    serde_json::from_slice(&said.ok()?.ok()??).ok()
}

/// What would make steps of an automation fail, each with its step and what would be right.
///
/// `sender`: why the brand has none to write from, if it has none. Where no worker has said what it can, only the brand's part is looked at.
pub fn problems(plan: &Plan, sender: Result<(), &str>, abilities: Option<Abilities>) -> Vec<String> {
    let all = Abilities { mail: true, public_url: true, reach: Reach { private: true, http: true } };
    let abilities = abilities.unwrap_or(all);
    let mut found = Vec::new();
    // Nodes are laid from the last step to the first.
    for node in plan.nodes.iter().rev() {
        let Op::Act(action) = &node.op else { continue };
        let mut wrong = |what: String| found.push(format!("step {} ({}): {what}", node.path, action.kind()));
        match action {
            Action::Email { .. } | Action::Confirm { .. } => {
                let links = !matches!(action, Action::Email { marketing: false, .. });
                if !abilities.mail {
                    wrong(
                        "no SMTP server is set: give the automation workers --smtp-url (TRIBUTARY_SMTP_URL)"
                            .to_owned(),
                    );
                }
                if links && !abilities.public_url {
                    wrong("its link needs an address that customers reach: give the automation workers --public-url (TRIBUTARY_PUBLIC_URL)".to_owned());
                }
                if let Err(why) = sender {
                    wrong(why.to_owned());
                }
            }
            Action::Webhook { url, .. } | Action::Chat { url, .. } => {
                if let Some(why) = Url::parse(url).ok().and_then(|url| abilities.reach.refusal(&url)) {
                    wrong(format!("{url}: {why}"));
                }
            }
            Action::SetTrait { .. } | Action::AddTag { .. } | Action::EmitEvent { .. } => {}
        }
    }
    found
}

/// Whether an automation does anything outside, for which a worker's abilities count.
pub fn goes_outside(plan: &Plan) -> bool {
    plan.nodes.iter().any(|node| {
        matches!(
            &node.op,
            Op::Act(
                Action::Email { .. } | Action::Confirm { .. } | Action::Webhook { .. } | Action::Chat { .. }
            )
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::automation::definition::Definition;

    fn plan(steps: serde_json::Value) -> Plan {
        let definition: Definition = serde_json::from_value(
            json!({"name": "n", "trigger": {"on": "event", "event": "E"}, "steps": steps}),
        )
        .unwrap();
        Plan::of(&definition).unwrap()
    }

    #[test]
    fn each_step_that_would_fail_is_named_with_what_would_be_right() {
        let plan = plan(json!([
            {"do": "email", "subject": "s", "text": "t"},
            {"do": "branch", "condition": "true", "then": [{"do": "webhook", "url": "http://10.0.0.1/x"}]},
            {"do": "chat", "url": "https://192.168.0.1/x", "text": "t"},
            {"do": "email", "subject": "s", "text": "t", "marketing": false},
            {"do": "webhook", "url": "https://crm.example/x"},
            {"do": "add_tag", "tag": "a"},
        ]));
        let nothing = Abilities { mail: false, public_url: false, reach: Reach::default() };
        let found = problems(&plan, Err("email_from is not set"), Some(nothing));
        let says = [
            ("step 1 (email)", "--smtp-url"),
            ("step 1 (email)", "--public-url"),
            ("step 1 (email)", "email_from"),
            ("step 2.then.1 (webhook)", "use https://"),
            ("step 3 (chat)", "--allow-private-destinations"),
            ("step 4 (email)", "--smtp-url"),
            ("step 4 (email)", "email_from"),
        ];
        assert_eq!(found.len(), says.len(), "{found:#?}");
        for (problem, (step, what)) in found.iter().zip(says) {
            assert!(problem.starts_with(step) && problem.contains(what), "{problem}");
        }
        let all = Abilities { mail: true, public_url: true, reach: Reach { private: true, http: true } };
        assert_eq!(problems(&plan, Ok(()), Some(all)), Vec::<String>::new());
        assert_eq!(
            problems(&plan, Err("email_from"), None).len(),
            2,
            "the brand's part is known without a worker"
        );
    }
}
