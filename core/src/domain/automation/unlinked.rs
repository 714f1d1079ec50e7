//! What a public key stated, without what mail programs make links of.
//!
//! Whoever has a page of the shop open can give a customer a trait, or write an address into a newsletter's form together with words
//! of their own. A mail would carry these in the brand's name: so they lead nowhere.

use serde_json::Value;

/// Takes out texts that would be links, and fields and elements that are nothing else; `own` is the reader's own address. `None` where
/// nothing is left.
pub(super) fn unlinked(stated: Value, own: Option<&str>) -> Option<Value> {
    match stated {
        Value::String(text) => (Some(text.as_str()) == own || !links(&text)).then_some(Value::String(text)),
        Value::Array(stated) => {
            Some(Value::Array(stated.into_iter().filter_map(|stated| unlinked(stated, own)).collect()))
        }
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(name, _)| !links(name));
            Some(Value::Object(
                kept.filter_map(|(name, stated)| Some((name, unlinked(stated, own)?))).collect(),
            ))
        }
        other => Some(other),
    }
}

/// Whether a mail program may make a link of something in a text: an address with its scheme, or a word that reads like a domain.
fn links(text: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '-' || c == '.';
    text.contains("://")
        || text.split(|c| !is_part(c)).any(|word| {
            word.trim_matches('.').rsplit_once('.').is_some_and(|(name, top)| {
                !name.is_empty() && top.chars().count() > 1 && top.chars().all(char::is_alphabetic)
            })
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_would_be_a_link_is_left_out_wherever_it_stands() {
        for text in [
            "You have won! https://phish.example",
            "www.phish.example",
            "phish.example/win",
            "see PHISH.COM.",
            "(phish.co.uk)",
            "me@phish.example",
            "тест.рф",
            "ftp://10.0.0.1",
        ] {
            assert_eq!(unlinked(json!(text), None), None, "{text}");
        }
        for text in ["Ada", "J. R. R. Tolkien", "3.14", "size 4.5 cm", "St.", "…", "a.b", ""] {
            assert_eq!(unlinked(json!(text), None), Some(json!(text)), "{text}");
        }
        let stated = json!({"a": ["x", "y.example", {"b": "http://z"}], "c.example": 1, "to": "ada@x.example", "n": 1.5});
        let kept = json!({"a": ["x", {}], "to": "ada@x.example", "n": 1.5});
        assert_eq!(unlinked(stated, Some("ada@x.example")), Some(kept));
    }
}
