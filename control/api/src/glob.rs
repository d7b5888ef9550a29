//! Patterns over paths as operators write them: `*` and `?` within a segment, `**` across segments.
//!
//! A pattern without `/` is matched against the file's name alone, one with `/` against the whole path. There is
//! no backtracking beyond one remembered star per kind, so that no pattern takes exponential time.

use std::str::FromStr;

/// One pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    pattern: Box<str>,
    whole_path: bool,
}

impl Glob {
    /// Whether a path (relative, without leading `/`) is meant.
    pub fn matches(&self, path: &str) -> bool {
        if self.whole_path {
            return matches(self.pattern.as_bytes(), path.as_bytes());
        }
        matches(self.pattern.as_bytes(), path.rsplit('/').next().unwrap_or(path).as_bytes())
    }
}

impl FromStr for Glob {
    type Err = GlobError;

    fn from_str(text: &str) -> Result<Self, GlobError> {
        let pattern = text.strip_prefix('/').unwrap_or(text);
        if pattern.is_empty() || pattern.len() > PATTERN_BYTES_MAX || pattern.contains(['[', ']', '{', '}']) {
            return Err(GlobError { found: text.chars().take(120).collect() });
        }
        Ok(Self { pattern: pattern.into(), whole_path: text.contains('/') })
    }
}

/// Text that is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a pattern of `*`, `?` and `**` such as `*.sig` or `pool/**/*.changes`, found {found:?}")]
pub struct GlobError {
    /// The first 120 characters of what was found.
    pub found: String,
}

/// A failed match goes back to the last `*`, and beyond it to the last `**`: O(pattern × text) steps for each.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    let mut deep: Option<(usize, usize)> = None;
    loop {
        if pattern[p..].starts_with(b"**") {
            p += 2;
            // `**/` also stands for no directory at all.
            if pattern.get(p) == Some(&b'/') && (t == 0 || text[t - 1] == b'/') {
                p += 1;
            }
            deep = Some((p, t));
            star = None;
            continue;
        }
        match (pattern.get(p), text.get(t)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                p += 1;
                star = Some((p, t));
                continue;
            }
            (Some(b'?'), Some(&byte)) if byte != b'/' => {
                p += 1;
                t += 1;
                continue;
            }
            (Some(expected), Some(found)) if expected == found && *expected != b'?' => {
                p += 1;
                t += 1;
                continue;
            }
            _ => {}
        }
        if let Some((after, at)) = star
            && text.get(at).is_some_and(|&byte| byte != b'/')
        {
            (p, t) = (after, at + 1);
            star = Some((after, at + 1));
        } else if let Some((after, at)) = deep
            && at < text.len()
        {
            // After `**/` the rest starts at a segment; after a bare `**` anywhere.
            let mut next = at + 1;
            if after >= 1 && pattern[after - 1] == b'/' {
                while next < text.len() && text[next - 1] != b'/' {
                    next += 1;
                }
            }
            (p, t) = (after, next);
            deep = Some((after, next));
            star = None;
        } else {
            return false;
        }
    }
}

/// Bytes of a pattern at most.
const PATTERN_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn hit(pattern: &str, path: &str) -> bool {
        pattern.parse::<Glob>().unwrap().matches(path)
    }

    #[test]
    fn a_name_is_matched_anywhere_and_a_path_from_the_root() {
        assert!(hit("*.sig", "a/b/c.sig"));
        assert!(hit("Release", "dists/stable/Release"));
        assert!(!hit("*.sig", "a.sig/b"));
        assert!(hit("/top.txt", "top.txt"));
        assert!(!hit("/top.txt", "a/top.txt"));
        assert!(hit("repo/*/x", "repo/a/x"));
        assert!(!hit("repo/*/x", "repo/a/b/x"));
        assert!(hit("a?c", "abc") && !hit("a?c", "a/c") && !hit("a?c", "ac"));
    }

    #[test]
    fn two_stars_cross_directories() {
        assert!(hit("dists/**", "dists/stable/main/Packages"));
        assert!(!hit("dists/**", "pool/dists/x"));
        assert!(hit("**/repodata/*", "fedora/40/repodata/repomd.xml"));
        assert!(hit("**/repodata/*", "repodata/repomd.xml"));
        assert!(!hit("**/repodata/*", "xrepodata/repomd.xml"));
        assert!(hit("a/**/z", "a/z") && hit("a/**/z", "a/b/c/z") && !hit("a/**/z", "a/bz"));
    }

    #[test]
    fn what_is_no_pattern_is_refused_and_stars_cost_no_exponent() {
        for text in ["", "/", "[ab]", "{a,b}", &"x".repeat(2000)] {
            assert!(text.parse::<Glob>().is_err(), "{text:?}");
        }
        assert!(!hit(&"*a".repeat(200), &"a".repeat(199).replace('a', "ab")));
    }
}
