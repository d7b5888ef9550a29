//! `Authorization: Bearer …` (RFC 6750), taken apart; what the token is worth is decided elsewhere.

/// The token of an `Authorization` field; `None` for another scheme or none.
pub(crate) fn token(field: &str) -> Option<&str> {
    let (scheme, token) = field.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        assert_eq!(token("Bearer abc"), Some("abc"));
        assert_eq!(token("bearer  abc "), Some("abc"));
        for field in ["Basic abc", "abc", "", "Bearer"] {
            assert_eq!(token(field), None, "{field:?}");
        }
    }
}
