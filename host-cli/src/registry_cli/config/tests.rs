use super::*;

fn env_of<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
    move |name| {
        pairs
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, v)| (*v).to_owned())
    }
}

#[test]
fn strongest_source_wins_and_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("config.toml"),
        "namespace = \"file\"\nurl = \"f:1\"\n",
    )
    .unwrap();
    let storage = dir.path().to_str().unwrap();
    let env = [
        ("CONTAINER_REGISTRY_STORAGE", storage),
        ("CONTAINER_REGISTRY_NAMESPACE", "env"),
    ];
    let config = Config::resolve(&vec![("url", "--url", "opt:2".into())], &env_of(&env)).unwrap();
    assert_eq!(config.get("url"), Some(("opt:2", &Origin::Option("--url"))));
    assert_eq!(config.value("namespace"), Some("env"));
    let env = [("CONTAINER_REGISTRY_STORAGE", storage)];
    let config = Config::resolve(&vec![], &env_of(&env)).unwrap();
    assert_eq!(config.value("namespace"), Some("file"));
    assert_eq!(
        config.get("tag_strategy"),
        Some(("timestamp latest", &Origin::Default))
    );
}

#[test]
fn unknown_keys_and_broken_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let env = [("CONTAINER_REGISTRY_STORAGE", dir.path().to_str().unwrap())];
    for text in [
        "nonsense = 1",
        "url = ",
        "storage = \"/x\"",
        "insecure = [1]",
    ] {
        std::fs::write(dir.path().join("config.toml"), text).unwrap();
        assert!(Config::resolve(&vec![], &env_of(&env)).is_err(), "{text}");
    }
}

#[test]
fn registry_is_checked_and_gets_a_port() {
    let with = |url: &str, namespace: &str| {
        let env = [
            ("CONTAINER_REGISTRY_STORAGE", "/nonexistent"),
            ("CONTAINER_REGISTRY_URL", url),
            ("CONTAINER_REGISTRY_NAMESPACE", namespace),
        ];
        Config::resolve(&vec![], &env_of(&env)).unwrap().registry()
    };
    assert_eq!(
        with("localhost", "yocto").unwrap().host().port(),
        Some(5000)
    );
    assert_eq!(with("example.com", "a/b").unwrap().host().port(), None);
    assert!(with("localhost:5000/yocto", "x").is_err());
    assert!(with("localhost:99999", "x").is_err());
    assert!(with("localhost:5000", "Not/Legal").is_err());
}

#[test]
fn insecure_means_the_named_hosts_only() {
    let with = |insecure: &str| {
        let env = [
            ("CONTAINER_REGISTRY_STORAGE", "/nonexistent"),
            ("CONTAINER_REGISTRY_URL", "build:5000"),
            ("CONTAINER_REGISTRY_INSECURE", insecure),
        ];
        let config = Config::resolve(&vec![], &env_of(&env)).unwrap();
        let hosts = config.insecure_hosts();
        hosts.map(|hosts| hosts.iter().map(Host::to_string).collect::<Vec<_>>())
    };
    for no in ["0", "false", "False", "NO", " off ", " "] {
        assert_eq!(with(no).unwrap(), [""; 0], "{no:?}");
    }
    // BitBake and Python write True; it is no host of that name.
    for yes in ["1", "true", "True", "TRUE", "Yes", "on", " 1 "] {
        assert_eq!(with(yes).unwrap(), ["build:5000"], "{yes:?}");
    }
    assert_eq!(
        with("other:5000, lab.local").unwrap(),
        ["other:5000", "lab.local"]
    );
    assert!(with("not a host!").is_err());
}

#[test]
fn one_machine_directory_beats_a_weaker_parent() {
    let base = ("CONTAINER_REGISTRY_STORAGE", "/nonexistent");
    let build = ("BUILDDIR", "/b");
    let env = [base, build, ("DEPLOY_DIR_IMAGE", "/m")];
    let config = Config::resolve(&vec![], &env_of(&env)).unwrap();
    assert_eq!(config.deploy_roots(), DeployRoots::Machine("/m".into()));
    // Of two that are given alike, the one machine is meant.
    let env = [
        base,
        ("DEPLOY_DIR_IMAGES", "/all"),
        ("DEPLOY_DIR_IMAGE", "/m"),
    ];
    let config = Config::resolve(&vec![], &env_of(&env)).unwrap();
    assert_eq!(config.deploy_roots(), DeployRoots::Machine("/m".into()));
    let env = [base, build];
    let config = Config::resolve(&vec![], &env_of(&env)).unwrap();
    assert_eq!(
        config.deploy_roots(),
        DeployRoots::AllMachines("/b/tmp/deploy/images".into())
    );
}

#[test]
fn secure_and_insecure_contradict() {
    for (pairs, legal) in [
        (&[("CONTAINER_REGISTRY_INSECURE", "1")][..], false),
        (&[("CONTAINER_REGISTRY_INSECURE", "True")], false),
        (&[("CONTAINER_REGISTRY_INSECURE", " YES ")], false),
        (&[("CONTAINER_REGISTRY_INSECURE", "False")], true),
        (&[("CONTAINER_REGISTRY_INSECURE", "localhost:5000")], false),
        (&[("CONTAINER_REGISTRY_INSECURE", "localhost")], false),
        (&[("CONTAINER_REGISTRY_INSECURE", "lab:5000")], true),
        (
            &[("CONTAINER_REGISTRY_URL", "http://localhost:5000")],
            false,
        ),
        (
            &[("CONTAINER_REGISTRY_URL", "https://localhost:5000")],
            true,
        ),
    ] {
        for secure in ["CONTAINER_REGISTRY_SECURE", "CONTAINER_REGISTRY_AUTH"] {
            let mut env = vec![
                ("CONTAINER_REGISTRY_STORAGE", "/nonexistent"),
                (secure, "1"),
            ];
            env.extend_from_slice(pairs);
            let config = Config::resolve(&vec![], &env_of(&env));
            assert_eq!(config.is_ok(), legal, "{env:?}");
        }
    }
}

#[test]
fn secure_means_tls_and_a_password_unless_auth_says_no() {
    for (secure, auth, tls, password, warned) in [
        ("", "", false, false, false),
        ("1", "", true, true, false),
        ("1", "0", true, false, false),
        ("1", "1", true, true, false),
        ("0", "0", false, false, false),
        ("", "1", true, true, true),
        ("0", "1", true, true, true),
    ] {
        let env = [
            ("CONTAINER_REGISTRY_STORAGE", "/nonexistent"),
            ("CONTAINER_REGISTRY_SECURE", secure),
            ("CONTAINER_REGISTRY_AUTH", auth),
        ];
        let config = Config::resolve(&vec![], &env_of(&env)).unwrap();
        assert_eq!(
            (config.wants_tls().unwrap(), config.wants_auth().unwrap()),
            (tls, password),
            "{env:?}"
        );
        assert_eq!(!config.warnings().is_empty(), warned, "{env:?}");
    }
}

#[test]
fn numbers_have_bounds() {
    for (days, legal) in [
        ("1", true),
        ("3650", true),
        ("0", false),
        ("-1", false),
        ("x", false),
        ("99999999999", false),
    ] {
        let env = [
            ("CONTAINER_REGISTRY_STORAGE", "/nonexistent"),
            ("CONTAINER_REGISTRY_CERT_DAYS", days),
        ];
        let config = Config::resolve(&vec![], &env_of(&env)).unwrap();
        assert_eq!(
            config.number("cert_days", 1..=3650).is_ok(),
            legal,
            "{days}"
        );
    }
}
