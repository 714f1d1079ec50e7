//! Definitions to begin with: an automation made from one of them is a draft that its brand edits. They listen to what Shopify and the
//! brand's own servers tell: whoever has a page of the shop open has the public key, and can tell anything.

use serde_json::json;

use super::definition::Definition;

/// A definition to begin with.
#[derive(Clone, Debug)]
pub struct Ready {
    /// What it is named by.
    pub name: &'static str,
    /// The definition.
    pub definition: Definition,
}

/// All of them.
pub fn all() -> Vec<Ready> {
    let definitions = [
        (
            "abandoned_cart",
            json!({
                "name": "Abandoned cart",
                "description": "Reminds who has started a checkout and not bought within an hour, and again a day later.",
                "trigger": {"on": "event", "event": "Checkout Started", "trusted": true},
                "cancel_on": [{"event": "Order Created", "trusted": true}, {"event": "Order Completed", "trusted": true}],
                "reentry": {"mode": "after_end", "after": {"days": 1}},
                "steps": [
                    {"do": "wait", "for": {"hours": 1}},
                    {"do": "email",
                     "subject": "You left something behind",
                     "text": "{% set name = customer.traits.firstName or customer.traits.first_name %}Hi{% if name %} {{ name }}{% endif %},\n\nyou left something in your cart. We have saved it for you{% if event.properties.abandoned_checkout_url %}:\n{{ event.properties.abandoned_checkout_url }}{% else %}.{% endif %}\n\nQuestions about size, delivery or returns? Just reply to this e-mail.\n"},
                    {"do": "wait", "for": {"days": 1}},
                    {"do": "email",
                     "subject": "Still thinking it over?",
                     "text": "{% set name = customer.traits.firstName or customer.traits.first_name %}Hi{% if name %} {{ name }}{% endif %},\n\nyour cart is still saved, and this is our last reminder{% if event.properties.abandoned_checkout_url %}:\n{{ event.properties.abandoned_checkout_url }}{% else %}.{% endif %}\n"}
                ]
            }),
        ),
        (
            "welcome",
            json!({
                "name": "Welcome",
                "description": "Greets who has consented to e-mail, once in a life.",
                "trigger": {"on": "event", "event": "Customer Created", "trusted": true},
                "reentry": {"mode": "once"},
                "steps": [
                    {"do": "wait", "for": {"minutes": 5}},
                    {"do": "email",
                     "subject": "{% set name = customer.traits.firstName or customer.traits.first_name %}Welcome{% if name %}, {{ name }}{% endif %}",
                     "text": "{% set name = customer.traits.firstName or customer.traits.first_name %}Hi{% if name %} {{ name }}{% endif %},\n\nthank you for joining us. You will be the first to hear about new arrivals and offers.\n\nReply to this e-mail whenever you have a question.\n"},
                    {"do": "add_tag", "tag": "welcomed"}
                ]
            }),
        ),
        (
            "win_back",
            json!({
                "name": "Win back",
                "description": "Writes to who bought more than once and has stayed away.",
                "trigger": {"on": "segment_enter", "segment": "rfm_at_risk"},
                "cancel_on": [{"event": "Order Created", "trusted": true}, {"event": "Order Completed", "trusted": true}],
                "reentry": {"mode": "after_end", "after": {"days": 90}},
                "steps": [
                    {"do": "email",
                     "subject": "We miss you",
                     "text": "{% set name = customer.traits.firstName or customer.traits.first_name %}Hi{% if name %} {{ name }}{% endif %},\n\nyour last order was on {{ customer.orders.last | date }}, and a lot is new since then. Come and have a look.\n"},
                    {"do": "wait_until", "event": "Order Created", "trusted": true, "within": {"days": 14},
                     "otherwise": [{"do": "add_tag", "tag": "win_back_failed"}]}
                ]
            }),
        ),
        (
            "post_purchase_review",
            json!({
                "name": "Review after the purchase",
                "description": "Asks for a review two weeks after the parcel was sent.",
                "trigger": {"on": "event", "event": "Order Fulfilled", "trusted": true},
                "cancel_on": [{"event": "Order Cancelled", "trusted": true}, {"event": "Order Refunded", "trusted": true}],
                "reentry": {"mode": "always", "after": {"days": 30}},
                "steps": [
                    {"do": "wait", "for": {"days": 14}},
                    {"do": "email",
                     "subject": "How do you like it?",
                     "text": "{% set name = customer.traits.firstName or customer.traits.first_name %}Hi{% if name %} {{ name }}{% endif %},\n\nyour order {{ event.properties.name }} has been with you for a while. Are you happy with it? A short review helps other customers, and us.\n"}
                ]
            }),
        ),
        (
            "vip",
            json!({
                "name": "VIP",
                "description": "Tags the best customers, and thanks them.",
                "trigger": {"on": "segment_enter", "segment": "rfm_champions"},
                "reentry": {"mode": "once"},
                "steps": [
                    {"do": "add_tag", "tag": "vip"},
                    {"do": "email",
                     "subject": "Thank you",
                     "text": "{% set name = customer.traits.firstName or customer.traits.first_name %}Hi{% if name %} {{ name }}{% endif %},\n\nyou are one of our best customers. Thank you for your loyalty!\n\nFrom now on you will hear about new arrivals before everyone else.\n"}
                ]
            }),
        ),
    ];
    let read = |(name, json)| Some(Ready { name, definition: serde_json::from_value(json).ok()? });
    definitions.into_iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::automation::plan::Plan;

    #[test]
    fn each_can_be_used_as_it_is() {
        let names: Vec<&str> = all().iter().map(|ready| ready.name).collect();
        assert_eq!(names, ["abandoned_cart", "welcome", "win_back", "post_purchase_review", "vip"]);
        for ready in all() {
            Plan::of(&ready.definition).unwrap_or_else(|error| panic!("{}: {error}", ready.name));
        }
    }
}
