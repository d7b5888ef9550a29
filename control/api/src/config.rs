//! TOML configuration read into checked types: an unknown key is refused, with the nearest known one.

use serde::de::DeserializeOwned;

/// Reads a configuration.
///
/// `T` must be `#[serde(deny_unknown_fields)]` all the way down: that is where the known keys come from.
///
/// # Errors
/// [`ConfigError`] with line and column, and the nearest known key where one is unknown.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let (line, column) = error.span().map_or((1, 1), |span| position(text, span.start));
        ConfigError { line, column, message: with_nearest(error.message()) }
    })
}

/// What is wrong with a configuration, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ConfigError {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// In words.
    pub message: String,
}

/// The known word nearest to a wrong one, if any is near enough to be meant.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(wrong, word), word))
        .filter(|&(distance, word)| distance <= 1 + word.len().max(wrong.len()) / 4)
        .min()
        .map(|(_, word)| word)
}

fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn with_nearest(message: &str) -> String {
    let message = message.trim_end();
    if !message.starts_with("unknown field") && !message.starts_with("unknown variant") {
        return message.to_owned();
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(wrong) = quoted.next() else { return message.to_owned() };
    match nearest(wrong, quoted) {
        Some(meant) => format!("{message}; did you mean `{meant}`?"),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        listen: String,
        #[serde(default)]
        limits: Limits,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Limits {
        monthly_volume: u64,
        rate: u64,
    }

    #[test]
    fn a_good_one_is_read() {
        let sample: Sample = parse("listen = 'a'\n[limits]\nrate = 3\n").unwrap();
        assert_eq!((sample.listen.as_str(), sample.limits.rate, sample.limits.monthly_volume), ("a", 3, 0));
    }

    #[test]
    fn an_unknown_key_names_place_and_nearest() {
        let error = parse::<Sample>("listen = 'a'\n[limits]\nmontly_volume = 3\n").unwrap_err();
        assert_eq!((error.line, error.column), (3, 1));
        assert!(error.message.contains("did you mean `monthly_volume`?"), "{error}");
        let error = parse::<Sample>("listen = 'a'\nsomething_else = 1\n").unwrap_err();
        assert!(
            error.message.contains("something_else") && !error.message.contains("did you mean"),
            "{error}"
        );
    }

    #[test]
    fn wrong_types_and_syntax_name_their_line() {
        assert_eq!(parse::<Sample>("\nlisten = 3\n").unwrap_err().line, 2);
        assert_eq!(parse::<Sample>("listen = 'a'\n=\n").unwrap_err().line, 2);
    }
}
