//! `Repr-Digest` narrowed to what `Want-Repr-Digest` asks for (RFC 9530); it computes no digest.

use ::http::{HeaderMap, HeaderValue};

/// The field by which a site states digests of the whole representation.
pub(crate) const REPR_DIGEST: &str = "repr-digest";

/// The field by which a client states its preferences.
pub(crate) const WANT_REPR_DIGEST: &str = "want-repr-digest";

/// What is left of a site's `Repr-Digest` for a client; `None` when nothing it accepts is left.
///
/// Without preferences (or with ones that can't be read) everything is sent. With them, what the client weighs
/// above zero is sent if there is any of it, else everything it did not refuse by a weight of zero.
pub(crate) fn wanted(offered: &HeaderValue, request: &HeaderMap) -> Option<HeaderValue> {
    let mut preferences = Vec::new();
    for value in request.get_all(WANT_REPR_DIGEST) {
        match value.to_str().ok().and_then(read_preferences) {
            Some(more) => preferences.extend(more),
            None => return Some(offered.clone()),
        }
    }
    let Some(text) = offered.to_str().ok().filter(|_| !preferences.is_empty()) else {
        return Some(offered.clone());
    };
    let members: Vec<&str> = text.split(',').map(str::trim).filter(|member| !member.is_empty()).collect();
    let weight = |member: &str| {
        let algorithm = member.split('=').next().unwrap_or_default();
        // A later member of a dictionary overrides an earlier one (RFC 8941 section 3.2).
        preferences.iter().rev().find(|(name, _)| name == algorithm).map(|&(_, weight)| weight)
    };
    let mut chosen: Vec<&str> =
        members.iter().copied().filter(|member| weight(member).is_some_and(|weight| weight > 0)).collect();
    if chosen.is_empty() {
        chosen = members.into_iter().filter(|member| weight(member) != Some(0)).collect();
    }
    if chosen.is_empty() { None } else { HeaderValue::from_str(&chosen.join(", ")).ok() }
}

/// Reads `algorithm=weight` members with weights of 0 to 10; `None` when something else stands there.
fn read_preferences(text: &str) -> Option<Vec<(String, u8)>> {
    text.split(',')
        .map(str::trim)
        .map(|member| {
            let (name, weight) = member.split_once('=')?;
            let weight = weight.parse().ok().filter(|weight| *weight <= 10)?;
            Some((name.to_owned(), weight))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn narrowed(want: &[&'static str]) -> Option<String> {
        let offered = HeaderValue::from_static("sha-256=:AA==:, blake3=:BB==:");
        let mut request = HeaderMap::new();
        for value in want {
            request.append(WANT_REPR_DIGEST, HeaderValue::from_static(value));
        }
        wanted(&offered, &request).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn preferences() {
        let both = Some("sha-256=:AA==:, blake3=:BB==:".to_owned());
        let sha = Some("sha-256=:AA==:".to_owned());
        let blake = Some("blake3=:BB==:".to_owned());
        assert_eq!(narrowed(&[]), both);
        assert_eq!(narrowed(&["sha-256=1"]), sha);
        assert_eq!(narrowed(&["sha-256=1, blake3=0"]), sha);
        assert_eq!(narrowed(&["sha-256=0"]), blake);
        assert_eq!(narrowed(&["sha-512=10"]), both, "a wish that can't be met is no refusal");
        assert_eq!(narrowed(&["sha-256=0", "blake3=0"]), None);
        assert_eq!(narrowed(&["blake3=3", "sha-256=0"]), blake);
        assert_eq!(narrowed(&["sha-256"]), both, "a broken field is ignored");
        assert_eq!(narrowed(&["sha-256=11"]), both);
    }
}
