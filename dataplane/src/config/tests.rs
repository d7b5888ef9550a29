//! Tests of [`super`].

use super::*;

fn load(text: &str) -> Result<Config, LoadError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    std::fs::write(&path, text).unwrap();
    Config::load(&path, None)
}

#[test]
fn the_template_is_a_configuration() {
    let config = load(&Template::default().render()).unwrap();
    assert_eq!(config.listen_addresses(), [DEFAULT_LISTEN]);
    let template = Template {
        listen: vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()],
        public_url: Some("http://m.example:1".parse().unwrap()),
        tree: Some("/srv/a \"b\"".into()),
        donated_rate: Some("200 Mbit/s".into()),
    };
    let config = load(&template.render()).unwrap();
    assert_eq!(config.listen, template.listen);
    assert_eq!(config.public_url, template.public_url);
    assert_eq!(config.tree, template.tree);
    assert_eq!(config.effective_sync_rate(), Some(BytesPerSec(25_000_000)));
}

#[test]
fn every_commented_key_of_the_template_is_known() {
    let text = Template::default().render();
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let config = load(&uncommented).unwrap();
    assert_eq!(config.sync_rate, Some(BytesPerSec(50_000_000)));
    assert_eq!(config.local_networks.len(), 2);
    assert_eq!(config.limits.connections_max, Some(20_000));
    assert_eq!(config.budget.month.unwrap().volume, freshet_api::Bytes(10_000_000_000_000));
    assert_eq!(config.budget.hours.len(), 1);
    let again: Config = freshet_api::config::parse(&config.to_toml().unwrap()).unwrap();
    assert_eq!(again.budget, config.budget, "what --check-config prints is read back");
}

#[test]
fn every_state_directory_has_pins_of_its_own() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let automatic = |state: &tempfile::TempDir| Pins::Auto.directory(state.path());
    if let Some(pins) = automatic(&a) {
        assert!(pins.starts_with(BPFFS) && !pins.display().to_string().contains('.'));
        assert_ne!(automatic(&a), automatic(&b));
        assert_eq!(automatic(&a), Some(pins));
    }
    assert_eq!(Pins::Off.directory(a.path()), None);
    let named: Pins = "/sys/fs/bpf/mine".parse().unwrap();
    assert_eq!(named.directory(a.path()), Some("/sys/fs/bpf/mine".into()));
}

#[test]
fn what_is_in_force_is_read_back() {
    let config = load("donated_rate = '10 Mbit/s'\ninterfaces = 'eth*'\n[log]\naccess = 'a.log'").unwrap();
    let again: Config = freshet_api::config::parse(&config.to_toml().unwrap()).unwrap();
    assert_eq!(again, config);
}

#[test]
fn relative_paths_start_at_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.toml");
    std::fs::write(&path, "state = 'state'\n[log]\naccess = 'logs/a'").unwrap();
    let config = Config::load(&path, None).unwrap();
    assert_eq!(config.tree.unwrap(), directory.path().join("state/tree"));
    assert_eq!(config.log.access, AccessLogTarget::File(directory.path().join("logs/a")));
}

#[test]
fn mistakes_are_named_with_their_place() {
    for (text, expected) in [
        ("listne = []", "did you mean `listen`?"),
        ("[limits]\nconection_max = 1", "did you mean `connections_max`?"),
        ("[log]\nformat = 'jsn'", "did you mean `json`?"),
        ("\nlisten = ['nowhere']", "line 2"),
        ("donated_rate = '1 bit/s'", "at least"),
        ("donated_rate = 'fast'", "expected a rate"),
        ("public_url = 'ftp://x'", "expected a URL"),
        ("local_networks = ['10.0.0.1/8']", "expected a network"),
        ("interfaces = 'a/b'", "interface"),
        ("[limits]\nhead_timeout_secs = 0", "head_timeout_secs"),
        ("[log]\nfilter = 'a=nonsense'", "log.filter"),
        ("grace_secs = 10000000", "grace_secs"),
        ("pins = 'sys/fs'", "expected `auto`, `off` or a path"),
        ("[budget]\nconnexion_rate = 1", "did you mean `connection_rate`?"),
        ("[budget]\nconnection_rate = 1", "budget.connection_rate"),
        ("[mirror]\ninclude = ['a[']", "mirror.include"),
        ("[mirror]\nquota = 'much'", "line 2"),
        ("[mirror]\nordered = true", "mirror.quota"),
        ("sync_listen = 'nowhere'", "line 1"),
        ("[budget]\nhard_limit = 'on'", "donated_rate"),
        ("[budget.month]\nstart_day = 1", "volume"),
        ("[budget.month]\nvolume = '1 MB'", "expected `budget.month.volume` to be at least 10 MB"),
        ("[budget.month]\nvolume = '1 TB'\nstart_day = 29", "a day from 1 to 28, found 29"),
        ("[budget.month]\nvolume = '1 TB'\nstart_within_hours = 73", "at most 72"),
        ("[budget.month]\nvolume = '1 TB'\ncounts = 'received'", "expected `sent` or"),
        ("[budget.owner_first]\nlink = '1 Mbit/s'\nmargin = '1 Mbit/s'", "less than `link`"),
        ("[budget.percentile]\ncommitment = '2 Mbit/s'\nburst = '1 Mbit/s'", "at least `commitment`"),
        ("[budget.minimum]\nsync = 20", "a rate to be shared"),
        ("donated_rate = '8 Mbit/s'\n[budget.minimum]\nsync = 60\ndelivery = 50", "at most 100"),
        (
            "[[budget.hours]]\ndays = 'weekend'\nfrom = '8:00'\nuntil = '9:00'\nrate = 0",
            "expected days such as",
        ),
        ("[[budget.hours]]\ndays = 'daily'\nfrom = '24:00'\nuntil = '9:00'\nrate = 0", "a time before 24:00"),
        (
            "[[budget.hours]]\ndays = 'daily'\nfrom = '8:00'\nuntil = '9:00'\nrate = '1 kbit/s'",
            "budget.hours.rate",
        ),
    ] {
        let error = load(text).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(FILE_NAME), "{text:?}: {error}");
    }
}

#[test]
fn urls_that_mislead_customers_are_refused() {
    for text in ["http://h:80", "https://mirror.example.org", "http://[2001:db8::1]:8081", "http://h/"] {
        assert!(text.parse::<PublicUrl>().is_ok(), "{text}");
    }
    for text in [
        "",
        "h:80",
        "http://",
        "http://u@h",
        "http://h/path",
        "http://h?q",
        "http://h:",
        "http://h:0",
        "http://h//",
        "/x",
    ] {
        assert!(text.parse::<PublicUrl>().is_err(), "{text}");
    }
}

#[test]
fn only_a_restart_changes_a_port() {
    let old = load("donated_rate = '10 Mbit/s'").unwrap();
    let mut new = Config { donated_rate: None, ..old.clone() };
    assert!(old.needs_restart(&new).is_empty());
    new.listen = vec!["127.0.0.1:1".parse().unwrap()];
    new.rings = 3;
    assert_eq!(old.needs_restart(&new), ["listen", "rings"]);
}
