//! Automations to start from: one that is made from a preset is a draft that its brand edits.
//!
//! They listen to what Shopify and the brand's own servers send: whoever has a page of the shop open has the public key, and can send
//! anything.

use super::definition::Definition;

/// An automation to start from.
#[derive(Clone, Debug)]
pub struct Preset {
    /// Its name in the API.
    pub name: &'static str,
    /// What an automation that is made from it does.
    pub definition: Definition,
}

const ALL: [(&str, &str); 5] = [
    ("abandoned_cart", include_str!("presets/abandoned_cart.json")),
    ("welcome", include_str!("presets/welcome.json")),
    ("win_back", include_str!("presets/win_back.json")),
    ("post_purchase_review", include_str!("presets/post_purchase_review.json")),
    ("vip", include_str!("presets/vip.json")),
];

pub fn all() -> Vec<Preset> {
    let read = |(name, text)| Some(Preset { name, definition: serde_json::from_str(text).ok()? });
    ALL.into_iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::automation::plan::Plan;

    #[test]
    fn each_can_be_used_as_it_is() {
        let names: Vec<&str> = all().iter().map(|preset| preset.name).collect();
        assert_eq!(names, ["abandoned_cart", "welcome", "win_back", "post_purchase_review", "vip"]);
        for preset in all() {
            Plan::of(&preset.definition).unwrap_or_else(|error| panic!("{}: {error}", preset.name));
        }
    }
}
