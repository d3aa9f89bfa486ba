use super::*;

fn host(text: &str) -> Host {
    Host::parse(text).unwrap()
}

fn config(pairs: &'static [(&'static str, &'static str)]) -> Config {
    let env = |name: &str| {
        let base = [
            ("CONTAINER_REGISTRY_STORAGE", "/nonexistent"),
            ("CONTAINER_REGISTRY_URL", "reg.example:5000"),
        ];
        pairs
            .iter()
            .chain(&base)
            .find(|(n, _)| *n == name)
            .map(|(_, v)| (*v).to_owned())
    };
    Config::resolve(&vec![], &env).unwrap()
}

#[test]
fn credentials_go_to_their_registry_alone() {
    let args = AuthArgs {
        creds: Some(Secret::new("me:secret")),
        ..AuthArgs::default()
    };
    let source = destination(&config(&[]), &args).unwrap();
    assert!(matches!(
        source.credential(&host("reg.example:5000")).unwrap(),
        Credential::Basic { username, .. } if username == "me"
    ));
    for other in ["reg.example:5001", "reg.example", "evil.example:5000"] {
        assert_eq!(
            source.credential(&host(other)).unwrap(),
            Credential::Anonymous
        );
    }
}

#[test]
fn env_prefers_a_token_and_is_asked_only_in_its_mode() {
    let env = config(&[
        ("CONTAINER_REGISTRY_AUTH_MODE", "env"),
        ("CONTAINER_REGISTRY_TOKEN", "t"),
        ("CONTAINER_REGISTRY_USER", "u"),
    ]);
    let source = configured(&env).unwrap();
    let credential = source.credential(&host("reg.example:5000")).unwrap();
    assert_eq!(credential, Credential::Bearer(Secret::new("t")));
    let none = config(&[
        ("CONTAINER_REGISTRY_TOKEN", "t"),
        ("CONTAINER_REGISTRY_AUTH_MODE", "none"),
    ]);
    let source = configured(&none).unwrap();
    assert_eq!(
        source.credential(&host("reg.example:5000")).unwrap(),
        Credential::Anonymous
    );
}

#[test]
fn useless_files_and_modes_are_errors_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("creds");
    std::fs::write(&empty, "# nothing\n").unwrap();
    for args in [
        AuthArgs {
            auth_mode: Some("magic".into()),
            ..AuthArgs::default()
        },
        AuthArgs {
            auth_mode: Some("env".into()),
            ..AuthArgs::default()
        },
        AuthArgs {
            auth_mode: Some("authfile".into()),
            ..AuthArgs::default()
        },
        AuthArgs {
            authfile: Some(dir.path().join("missing")),
            ..AuthArgs::default()
        },
        AuthArgs {
            credsfile: Some(empty),
            ..AuthArgs::default()
        },
        AuthArgs {
            creds: Some(Secret::new("no-colon")),
            ..AuthArgs::default()
        },
    ] {
        let error = destination(&config(&[]), &args).err().expect("an error");
        assert_eq!(
            crate::registry_cli::error::exit_of(&error),
            Exit::Usage,
            "{error:#}"
        );
    }
}

#[test]
fn errors_do_not_show_secrets() {
    let args = AuthArgs {
        creds: Some(Secret::new("hunter2")),
        ..AuthArgs::default()
    };
    let error = destination(&config(&[]), &args).err().expect("an error");
    assert!(!format!("{error:#} {error:?}").contains("hunter2"));
}

fn walk(sources: &Sources, registry: &str) -> (Result<Credential>, Vec<String>) {
    let mut said = Vec::new();
    let result = sources.walk(&host(registry), &mut |finding| {
        said.push(format!("{}: {}", finding.verdict, finding.reason));
    });
    (result, said)
}

#[test]
fn logins_are_looked_for_in_order_and_only_named_files_must_exist() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let candidate = |path: PathBuf, named| Candidate { path, named };
    let sources = |candidates: Vec<Candidate>| Sources {
        registry: host("r.example"),
        namespace: "team".to_owned(),
        given: Given::Stores(candidates),
    };
    let other = file("other", r#"{"auths":{"x.example":{"auth":"dTpw"}}}"#);
    let ours = file(
        "ours",
        r#"{"auths":{"r.example":{"auth":"aG9zdDpw"},"r.example/team":{"auth":"dGVhbTpw"}}}"#,
    );
    let missing = dir.path().join("missing");
    let all = [missing.clone(), other, ours.clone(), ours];
    let (found, said) = walk(
        &sources(all.into_iter().map(|path| candidate(path, false)).collect()),
        "r.example",
    );
    assert!(matches!(&found.unwrap(), Credential::Basic { username, .. } if username == "team"));
    assert_eq!(
        said,
        [
            "not used: no such file",
            "not used: holds nothing for r.example, but for x.example",
            "used: user name and password",
            "not used: a stronger source came first",
            "not used: a stronger source came first",
        ]
    );
    let (found, said) = walk(&sources(vec![candidate(missing, true)]), "r.example");
    assert!(format!("{:#}", found.unwrap_err()).contains("missing"));
    assert!(said[0].starts_with("failed"), "{said:?}");
    // A broken file is told, and not passed over for a weaker one.
    let broken = candidate(file("broken", "{"), false);
    let weaker = candidate(
        file("weak", r#"{"auths":{"r.example":{"auth":"dTpw"}}}"#),
        false,
    );
    let (found, said) = walk(&sources(vec![broken, weaker]), "r.example");
    assert!(format!("{:#}", found.unwrap_err()).contains("broken"));
    assert_eq!(said.len(), 1);
}
