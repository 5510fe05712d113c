use super::*;
use crate::model::{AckLevel, Labels, PoolName, PoolSpec};

fn config_path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(path)
}

fn load(file: Option<&str>, environment: &[(&str, &str)], flags: ConfigOverrides) -> Result<Config, String> {
    let environment = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    let file = file.map(config_path);
    Config::load(file.as_deref(), environment, flags).map_err(|error| error.to_string())
}

#[test]
fn the_annotated_file_has_the_defaults() {
    assert_eq!(load(Some("hotpool.toml"), &[], ConfigOverrides::default()).unwrap(), Config::default());
    // Every key is in it, so that each is documented.
    let text = std::fs::read_to_string(config_path("hotpool.toml")).unwrap();
    for key in [
        "listen",
        "resp_listen",
        "hosts",
        "max_connections",
        "idle_ms",
        "max_shards",
        "max_body_bytes",
        "request_timeout_ms",
        "insecure",
        "url",
        "wait_ms",
        "format",
    ] {
        assert!(text.contains(&format!("\n{key} = ")), "{key}");
    }
}

#[test]
fn the_annotated_file_names_every_field_of_a_pool_with_its_default() {
    let text = std::fs::read_to_string(config_path("hotpool.toml")).unwrap();
    let (_, block) = text.split_once("\n# [[pools]]\n").unwrap();
    let lines: Vec<&str> =
        block.lines().map(|line| line.strip_prefix("# ").expect("the block ends the file")).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("[[pools]]\n{}", lines.join("\n"))).unwrap();
    let pools = Config::load(Some(file.path()), [], ConfigOverrides::default()).unwrap().pools;
    assert_eq!(pools, [PoolConfig { name: PoolName::new("demo", "warm").unwrap(), spec: PoolSpec::default() }]);
    // With a class, so that the field is serialized.
    let spec = PoolSpec { class: Some("gold".into()), ..PoolSpec::default() };
    for field in serde_json::to_value(spec).unwrap().as_object().unwrap().keys() {
        let is_listed = |line: &&str| line.trim_start_matches("# ").starts_with(&format!("{field} = "));
        assert!(lines.iter().any(is_listed), "{field} is missing");
    }
}

#[test]
fn h05_declared_pools_may_not_exceed_the_limit_of_shards() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "[server]\nmax_shards = 20\n[[pools]]\nname = \"demo/warm\"\n[[pools]]\nname = \"demo/cold\"\nshards = ";
    let load = |shards: u16| {
        std::fs::write(file.path(), format!("{text}{shards}\n")).unwrap();
        Config::load(Some(file.path()), [], ConfigOverrides::default())
    };
    assert_eq!(load(4).unwrap().server.max_shards, 20);
    let error = load(8).unwrap_err().to_string();
    let found =
        format!("{}:3: pools: have 24 shards together, more than server.max_shards (20)", file.path().display());
    assert_eq!(error, found);
}

#[test]
fn a_declared_pool_is_parsed_with_all_fields() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "[[pools]]\nname = \"demo/warm\"\nshards = 2\nack = \"memory\"\nclass = \"gold\"\n\
                labels = { Zone = \"A\", \"example.com-x\" = \"y\" }\n[[pools]]\nname = \"demo/cold\"\n";
    std::fs::write(file.path(), text).unwrap();
    let pools = Config::load(Some(file.path()), [], ConfigOverrides::default()).unwrap().pools;
    assert_eq!((pools.len(), pools[1].name.as_str(), &pools[1].spec), (2, "demo/cold", &PoolSpec::default()));
    let spec = &pools[0].spec;
    assert_eq!((spec.shards, spec.ack, spec.class.as_deref()), (2, AckLevel::Memory, Some("gold")));
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(spec.labels, Labels::from([label("Zone", "A"), label("example.com-x", "y")]));
}

#[test]
fn every_invalid_file_is_rejected_with_the_expected_messages() {
    let mut seen = 0;
    for entry in std::fs::read_dir(config_path("invalid")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let error = Config::load(Some(&path), [], ConfigOverrides::default()).expect_err(&path.display().to_string());
        // `#! words` in a fixture must come in the message.
        let words: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#! ")).collect();
        assert!(!words.is_empty(), "{} says no words", path.display());
        for words in &words {
            assert!(error.to_string().contains(words), "{}: {words:?} is not in {error}", path.display());
        }
        // No problem is reported twice, and none is made up: one line for each expected message.
        let of_fields = words.iter().filter(|words| words.contains(": ")).count();
        if of_fields == words.len() {
            assert_eq!(error.to_string().lines().count(), words.len(), "{}: {error}", path.display());
        }
        seen += 1;
    }
    assert!(seen >= 5);
}

#[test]
fn variables_override_the_file_and_flags_override_both() {
    let environment = [
        ("HOTPOOL__STORE__URL", "memory:"),
        ("HOTPOOL__SERVER__MAX_CONNECTIONS", "7"),
        ("HOTPOOL_OTHER", "x"),
        ("PATH", "y"),
    ];
    let config = load(Some("hotpool.toml"), &environment, ConfigOverrides::default()).unwrap();
    assert_eq!(config.store.url, StoreUrl::Memory);
    assert_eq!(config.server.max_connections, 7);
    let flags = ConfigOverrides {
        store: Some(StoreUrl::File("d".into())),
        log: Some(LogFormat::Json),
        ..ConfigOverrides::default()
    };
    let config = load(Some("hotpool.toml"), &environment, flags).unwrap();
    assert_eq!(config.store.url, StoreUrl::File("d".into()));
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn all_problems_are_reported_together() {
    let environment = [
        ("HOTPOOL__SERVER__LISTEN", "nowhere"),
        ("HOTPOOL__SERVER__LISTENN", "127.0.0.1:1"),
        ("HOTPOOL__SERVER__RESP_LISTEN", "on"),
        ("HOTPOOL__SERVER__MAX_CONNECTIONS", "0"),
        ("HOTPOOL__SERVER__MAX_SHARDS", "4194305"),
        ("HOTPOOL__SERVER__REQUEST_TIMEOUT_MS", "1.5"),
        ("HOTPOOL__STORE__URL", "redis://127.0.0.1/x"),
        ("HOTPOOL__STORE__WAIT_MS", "20000"),
        ("HOTPOOL__LGO__FORMAT", "json"),
    ];
    let error = load(None, &environment, ConfigOverrides::default()).unwrap_err();
    for words in [
        "server.listen: ",
        "server.listenn: unknown field",
        "server.resp_listen: must be HOST:PORT or off, got \"on\"",
        "server.max_connections: must be 1 to 1000000, got 0",
        "server.max_shards: must be 1 to 4194304, got 4194305",
        "server.request_timeout_ms: invalid type",
        "store.url: the database must be a number",
        "store.wait_ms: must not be above server.request_timeout_ms",
        "lgo: unknown field",
    ] {
        assert!(error.contains(words), "{words:?} is not in\n{error}");
    }
    assert_eq!(error.lines().count(), environment.len());
}

/// Problems of a file with this text; the path of the file is replaced by `FILE`.
fn problems_of(text: &str, environment: &[(&str, &str)], flags: ConfigOverrides) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let environment = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    let error = Config::load(Some(file.path()), environment, flags).unwrap_err().to_string();
    error.lines().map(|line| line.replace(&file.path().display().to_string(), "FILE")).collect()
}

#[test]
fn a_problem_has_a_line_of_the_file_only_if_the_file_sets_the_value() {
    let starts_with = |prefix: &str, problems: Vec<String>| {
        assert!(matches!(&problems[..], [problem] if problem.starts_with(prefix)), "{prefix}: {problems:?}");
    };
    let open = || ConfigOverrides { listen: Some(SocketAddr::from(([0, 0, 0, 0], 1))), ..ConfigOverrides::default() };
    let (good, bad) = ("[server]\nlisten = \"127.0.0.1:1\"\n", "[server]\nlisten = \"nowhere\"\n");
    let other = [("HOTPOOL__SERVER__IDLE_MS", "1")];
    starts_with("FILE:2: server.listen: must be HOST:PORT", problems_of(bad, &other, ConfigOverrides::default()));
    // A flag overrides the value, but the file stays invalid.
    let local = ConfigOverrides { listen: Some(SocketAddr::from(([127, 0, 0, 1], 1))), ..ConfigOverrides::default() };
    starts_with("FILE:2: server.listen: must be HOST:PORT", problems_of(bad, &[], local));
    let hosts = "[server]\nhosts = 7\n";
    let flag = ConfigOverrides { hosts: Some(HostNames::default()), ..ConfigOverrides::default() };
    starts_with("FILE:2: server.hosts: ", problems_of(hosts, &[], flag));
    // The value of the flag is invalid.
    starts_with("server.listen: 0.0.0.0:1 can be reached", problems_of(good, &[], open()));
    // Variables are invalid: at the key, below it, above it.
    for (name, value, prefix) in [
        ("HOTPOOL__SERVER__LISTEN", "nowhere", "server.listen: must be HOST:PORT"),
        ("HOTPOOL__SERVER__LISTEN", "0.0.0.0:1", "server.listen: 0.0.0.0:1 can be reached"),
        ("HOTPOOL__SERVER__LISTEN__PORT", "1", "server.listen: invalid type"),
        ("HOTPOOL__SERVER", "x", "server: invalid type"),
    ] {
        starts_with(prefix, problems_of(good, &[(name, value)], ConfigOverrides::default()));
    }
    // A variable with a similar name does not set the key.
    let alike = [("HOTPOOL__SERVER__LIS", "x")];
    let both = problems_of(bad, &alike, ConfigOverrides::default());
    assert_eq!(both.iter().filter(|problem| problem.starts_with("FILE:2: server.listen: ")).count(), 1, "{both:?}");
}

#[test]
fn listen_addresses_are_parsed() {
    let read = |text: &str| address(text).map(|address| address.to_string()).map_err(|error| error.to_string());
    for (text, expected) in [
        ("127.0.0.1:7070", "127.0.0.1:7070"),
        ("[::1]:0", "[::1]:0"),
        (":7070", "[::]:7070"),
        ("0.0.0.0:1", "0.0.0.0:1"),
        ("localhost:7070", "127.0.0.1:7070"),
    ] {
        assert_eq!(read(text).as_deref(), Ok(expected));
    }
    for text in ["", ":", "localhost", "localhost:", "localhost:x", ":70000", "a b:1", "[::1:1", "h/x:1", "u@h:1"] {
        assert!(read(text).is_err_and(|error| error.contains("as in")), "{text}: {:?}", read(text));
    }
    assert!(read("::1:7070").unwrap_err().contains("[::1]:7070"));
}

#[test]
fn other_machines_are_served_only_if_insecure() {
    let listen = |text: &str, insecure| {
        load(None, &[], ConfigOverrides { listen: Some(text.parse().unwrap()), insecure, ..ConfigOverrides::default() })
    };
    assert!(listen("0.0.0.0:7070", false).unwrap_err().contains("--insecure"));
    assert!(listen("192.0.2.1:7070", false).is_err());
    let resp = |text: &str| {
        let resp_listen = Some(text.parse().unwrap());
        load(None, &[], ConfigOverrides { resp_listen, ..ConfigOverrides::default() })
    };
    assert!(resp("0.0.0.0:7071").unwrap_err().contains("server.resp_listen: 0.0.0.0:7071 can be reached"));
    assert_eq!(resp("off").unwrap().server.resp_listen, RespListen(None));
    assert!(listen("[::1]:7070", false).is_ok());
    assert!(listen("0.0.0.0:7070", true).is_ok());
}

#[test]
fn a_missing_file_is_named() {
    assert!(load(Some("nowhere.toml"), &[], ConfigOverrides::default()).unwrap_err().contains("nowhere.toml"));
}

#[test]
fn store_urls_are_parsed() {
    for good in ["file:./hotpool-data", "file:/var/lib/hotpool", "memory:", "redis://h:6379"] {
        assert_eq!(good.parse::<StoreUrl>().unwrap().to_string(), good);
    }
    assert_eq!("redb:/var/lib/hotpool".parse(), Ok(StoreUrl::File("/var/lib/hotpool".into())));
    for bad in ["", "file:", "redb:", "memory:x", "redis://", "files:/x", "hotpool-data"] {
        assert!(bad.parse::<StoreUrl>().is_err(), "{bad}");
    }
}
