//! Shopify's global ids: `gid://shopify/KIND/ID`, sometimes with a query behind.

/// What a global id is of, and the id; `None` for what is none.
pub fn parts(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix("gid://shopify/")?.split_once('/')
}

/// The id alone, without a query; `None` for what is no global id.
pub fn id(text: &str) -> Option<&str> {
    let (_, id) = parts(text)?;
    Some(id.split('?').next().unwrap_or(id))
}
