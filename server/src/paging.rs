//! Pages: how many entries, and where they begin. A page's `next` is the cursor of the one after it.

use tributary_core::services::customer_search::MAX_PAGE;
use uuid::Uuid;

use crate::error::ApiError;

/// Entries of a page, unless asked otherwise.
const PAGE: usize = 20;

/// Which page: `C` says where it begins.
#[derive(Clone, Copy, Debug)]
pub struct PageAsked<C> {
    pub cursor: Option<C>,
    /// How many entries, at least 1.
    pub limit: usize,
}

impl<C> PageAsked<C> {
    /// The page of a query. `name` is the cursor's parameter, `parse` reads it.
    ///
    /// # Errors
    /// `invalid_limit`; `invalid_after` for a cursor that no page can have given.
    pub fn of(
        name: &str,
        cursor: Option<&str>,
        limit: Option<usize>,
        parse: impl FnOnce(&str) -> Option<C>,
    ) -> Result<Self, ApiError> {
        let limit = limit.unwrap_or(PAGE);
        if !(1..=MAX_PAGE).contains(&limit) {
            let message = format!("limit is {limit}; it may be 1 to {MAX_PAGE}");
            return Err(ApiError::bad_request("invalid_limit", message));
        }
        let invalid = || {
            let message = format!("invalid cursor: {name} must be the next of the previous page");
            ApiError::bad_request("invalid_after", message)
        };
        let cursor = cursor.map(|text| parse(text).ok_or_else(invalid)).transpose()?;
        Ok(Self { cursor, limit })
    }

    /// The same limit, as stores take it.
    pub fn rows(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX)
    }

    /// The cursor of the page after `entries`: none where they are fewer than were asked for.
    pub fn next<T, N>(&self, entries: &[T], cursor_of: impl FnOnce(&T) -> N) -> Option<N> {
        entries.last().filter(|_| entries.len() == self.limit).map(cursor_of)
    }
}

impl PageAsked<Uuid> {
    /// The same, where a page begins at an entry's id.
    ///
    /// # Errors
    /// As [`PageAsked::of`].
    pub fn by_id(name: &str, cursor: Option<&str>, limit: Option<usize>) -> Result<Self, ApiError> {
        Self::of(name, cursor, limit, |text| Uuid::try_parse(text).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_next_if_it_is_full_and_a_cursor_is_one_that_a_page_gave() {
        let page = PageAsked::by_id("after", None, Some(2)).unwrap();
        assert_eq!(page.next(&[1, 2], |n| *n), Some(2));
        assert_eq!(page.next(&[1], |n| *n), None);
        assert_eq!(PageAsked::by_id("after", None, None).unwrap().limit, PAGE);
        for limit in [0, MAX_PAGE + 1] {
            assert!(PageAsked::by_id("after", None, Some(limit)).is_err());
        }
        assert!(PageAsked::by_id("before", Some("nonsense"), None).is_err());
        let id = Uuid::from_u128(7);
        assert_eq!(PageAsked::by_id("before", Some(&id.to_string()), None).unwrap().cursor, Some(id));
    }
}
