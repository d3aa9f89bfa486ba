//! What each engine gets, beside what is there.

mod bake;

use alloc::vec;

use proptest::prelude::*;

use super::*;

fn pem() -> String {
    certificates(&format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        crate::base64::encode(&[0x30; 120])
    ))
    .unwrap()
}

fn settings(registry: &str, trust: Trust) -> Settings {
    Settings {
        gateway: Some(loopback::DEFAULT_GATEWAY.to_owned()),
        ..Settings::new(RegistryPrefix::parse(registry).unwrap(), trust)
    }
}

fn plain() -> Settings {
    settings("localhost:5000/yocto", Trust::Insecure)
}

fn secure() -> Settings {
    settings("localhost:5000/yocto", Trust::Authority(pem()))
}

const DROP: &str = "/etc/containers/registries.conf.d/50-container-registry.conf";

fn emitted(profile: Profile, settings: &Settings, present: &[(&str, &str)]) -> Emission {
    let present = present
        .iter()
        .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
    emit(&[profile], settings, &present.collect()).unwrap()
}

fn file<'e>(emission: &'e Emission, path: &str) -> &'e str {
    let found = emission.files.iter().find(|file| file.path == path);
    let paths: Vec<_> = emission.files.iter().map(|file| &file.path).collect();
    &found
        .unwrap_or_else(|| panic!("no {path} in {paths:?}"))
        .content
}

#[test]
fn weakness_4d_1_short_names_are_searched_in_our_registry_and_in_the_others() {
    let present = [
        (
            podman::MAIN,
            "unqualified-search-registries = [\n  'quay.io', # first\n]\n",
        ),
        (
            "/etc/containers/registries.conf.d/10-board.conf",
            "unqualified-search-registries = [\"board.example\", \"docker.io\"]\n",
        ),
    ];
    let emission = emitted(Profile::Podman, &plain(), &present);
    assert!(file(&emission, DROP).contains(
        "\nunqualified-search-registries = [\"10.0.2.2:5000\", \"board.example\", \"docker.io\"]\n"
    ));
    let last = Settings {
        search: Search::Last,
        ..plain()
    };
    let emission = emitted(Profile::Podman, &last, &present[..1]);
    assert!(file(&emission, DROP).contains("[\"quay.io\", \"10.0.2.2:5000\"]"));
    let off = Settings {
        search: Search::Off,
        ..plain()
    };
    let emission = emitted(Profile::CriO, &off, &present);
    assert!(!file(&emission, DROP).contains("unqualified"));
}

#[test]
fn weakness_4d_1_the_namespace_is_part_of_what_short_names_mean() {
    let named = Settings {
        aliases: vec!["app".into(), "team/tool".into()],
        ..plain()
    };
    let emission = emitted(Profile::Podman, &named, &[]);
    let drop = file(&emission, DROP);
    assert!(
        drop.contains(
            "[[registry]]\nlocation = \"10.0.2.2:5000\"\ninsecure = true\n\n# Short names are looked for in the namespace first.\n[[registry.mirror]]\nlocation = \"10.0.2.2:5000/yocto\"\ninsecure = true\n"
        ),
        "{drop}"
    );
    let flat = settings("localhost:5000", Trust::Insecure);
    assert!(!file(&emitted(Profile::Podman, &flat, &[]), DROP).contains("mirror"));
    assert!(drop.ends_with(
        "[aliases]\n\"app\" = \"10.0.2.2:5000/yocto/app\"\n\"team/tool\" = \"10.0.2.2:5000/yocto/team/tool\"\n"
    ));
    for alias in [
        "",
        "App",
        "app:1",
        "host.example/app",
        "localhost/app",
        "a//b",
    ] {
        let bad = Settings {
            aliases: vec![alias.into()],
            ..plain()
        };
        assert!(
            emit(&[Profile::Podman], &bad, &Present::new()).is_err(),
            "{alias}"
        );
    }
}

#[test]
fn weakness_4d_1_and_2_loopback_is_translated_for_every_engine() {
    for profile in Profile::ALL {
        for settings in [plain(), secure()] {
            let emission = emitted(profile, &settings, &[]);
            assert!(!emission.files.is_empty());
            for file in &emission.files {
                assert!(
                    !file.content.contains("localhost"),
                    "{profile}: {}",
                    file.content
                );
                assert!(!file.path.contains("localhost"), "{profile}: {}", file.path);
            }
            assert!(emission.notes[0].starts_with("localhost:5000 is 10.0.2.2:5000"));
            let kept = Settings {
                gateway: None,
                ..settings
            };
            let emission = emitted(profile, &kept, &[]);
            let said = |file: &File| {
                file.content.contains("localhost:5000") || file.path.contains("localhost:5000")
            };
            assert!(emission.files.iter().any(said), "{profile}");
        }
    }
}

#[test]
fn weakness_4d_2_daemon_json_is_merged() {
    let present = [(
        docker::DAEMON,
        "{\n  \"log-level\": \"warn\",\n  \"insecure-registries\": [\"lab:5000\"],\n  \"zz\": {\"a\": 1.0}\n}\n",
    )];
    let emission = emitted(Profile::Docker, &plain(), &present);
    assert_eq!(
        file(&emission, docker::DAEMON),
        "{\n  \"log-level\": \"warn\",\n  \"insecure-registries\": [\"lab:5000\", \"10.0.2.2:5000\"],\n  \"zz\": {\"a\": 1.0}\n}\n"
    );
    let emission = emitted(Profile::Docker, &plain(), &[]);
    assert_eq!(
        file(&emission, docker::DAEMON),
        "{\n  \"insecure-registries\": [\n    \"10.0.2.2:5000\"\n  ]\n}\n"
    );
    // Nothing to say in secure mode, so nothing is said; but a contradiction is.
    let emission = emitted(
        Profile::Docker,
        &secure(),
        &[(
            docker::DAEMON,
            "{\"insecure-registries\":[\"10.0.2.2:5000\"]}",
        )],
    );
    assert!(
        emission
            .files
            .iter()
            .all(|file| file.path != docker::DAEMON)
    );
    assert!(
        emission
            .notes
            .iter()
            .any(|note| note.contains("will not verify"))
    );
    for broken in [
        "[]",
        "{",
        "{\"insecure-registries\": \"x\"}",
        "{\"insecure-registries\":[],\"insecure-registries\":[]}",
    ] {
        let present = Present::from_iter([(docker::DAEMON.to_owned(), broken.to_owned())]);
        let error = emit(&[Profile::Docker], &plain(), &present).unwrap_err();
        assert!(error.to_string().starts_with(docker::DAEMON), "{error}");
    }
}

#[test]
fn weakness_4d_2_profiles_share_the_certificate_without_a_quarrel() {
    let all = emit(&Profile::ALL, &secure(), &Present::new()).unwrap();
    let certs: Vec<_> = all
        .files
        .iter()
        .filter(|file| file.path.rsplit('.').next() == Some("crt"))
        .collect();
    let paths: Vec<_> = certs.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "/etc/containerd/certs.d/10.0.2.2:5000/ca.crt",
            "/etc/containers/certs.d/10.0.2.2:5000/ca.crt",
            "/etc/docker/certs.d/10.0.2.2:5000/ca.crt",
            trust::CERTIFICATE,
        ]
    );
    assert!(certs.iter().all(|file| file.content == pem()));
    assert_eq!(certs[3].profiles, Profile::ALL);
}

#[test]
fn weakness_4d_3_the_trust_store_of_the_target_is_refreshed() {
    let other = pem().replace("MDAw", "MEAw");
    let before = format!("# bundle\n{}", other.trim_end());
    let emission = emitted(Profile::Podman, &secure(), &[(trust::BUNDLE, &before)]);
    assert_eq!(
        file(&emission, trust::BUNDLE),
        format!("{before}\n{}", pem())
    );
    let again = emitted(
        Profile::Podman,
        &secure(),
        &[(trust::BUNDLE, file(&emission, trust::BUNDLE))],
    );
    assert_eq!(file(&again, trust::BUNDLE), file(&emission, trust::BUNDLE));
    // Where there is no store yet, the file is where the store will look for it.
    let emission = emitted(Profile::Podman, &secure(), &[]);
    assert_eq!(file(&emission, trust::CERTIFICATE), pem());
    assert!(
        emission
            .notes
            .iter()
            .any(|note| note.contains("update-ca-certificates"))
    );
}

#[test]
fn weakness_4d_4_the_ca_comes_with_every_profile_and_needs_no_credentials() {
    for profile in Profile::ALL {
        let emission = emitted(profile, &secure(), &[]);
        let own = emission
            .files
            .iter()
            .filter(|file| file.path.contains("certs.d") && file.path.ends_with("ca.crt"));
        assert!(own.count() >= 1, "{profile}");
        assert!(emission.files.iter().all(|file| !file.secret), "{profile}");
    }
}

#[test]
fn containerd_finds_the_directory_of_hosts() {
    let hosts = "/etc/containerd/certs.d/10.0.2.2:5000/hosts.toml";
    let emission = emitted(Profile::Containerd, &plain(), &[]);
    assert!(
        file(&emission, hosts).ends_with(
            "server = \"http://10.0.2.2:5000\"\n\n[host.\"http://10.0.2.2:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
        )
    );
    assert!(file(&emission, containerd::MAIN).ends_with(
        "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"
    ));
    let emission = emitted(Profile::Containerd, &secure(), &[]);
    assert!(file(&emission, hosts).ends_with("server = \"https://10.0.2.2:5000\"\n\n[host.\"https://10.0.2.2:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = \"ca.crt\"\n"));
    let unchecked = settings("https://lab.example:5000/x", Trust::Insecure);
    let emission = emitted(Profile::Containerd, &unchecked, &[]);
    assert!(
        file(
            &emission,
            "/etc/containerd/certs.d/lab.example:5000/hosts.toml"
        )
        .contains("server = \"https://lab.example:5000\"\n")
    );
    assert!(
        file(
            &emission,
            "/etc/containerd/certs.d/lab.example:5000/hosts.toml"
        )
        .contains("skip_verify = true\n")
    );
}

#[test]
fn containerd_configuration_is_merged_where_that_is_safe() {
    let merged = |text: &str| {
        let emission = emitted(Profile::Containerd, &plain(), &[(containerd::MAIN, text)]);
        let main = emission
            .files
            .iter()
            .find(|file| file.path == containerd::MAIN);
        (
            main.map(|file| file.content.clone()),
            emission.notes.join("\n"),
        )
    };
    let registry = "plugins.\"io.containerd.grpc.v1.cri\".registry";
    let set = "config_path = \"/etc/containerd/certs.d\"";
    for (before, after) in [
        (
            format!("version = 2\n[{registry}]\n  config_path = \"\"\n  [{registry}.mirrors]\n"),
            format!("version = 2\n[{registry}]\n  {set}\n  [{registry}.mirrors]\n"),
        ),
        (
            format!("version = 2\n[{registry}] # here\nx = 1\n"),
            format!("version = 2\n[{registry}] # here\n  {set}\nx = 1\n"),
        ),
        (
            format!("version = 2\n[{registry}]"),
            format!("version = 2\n[{registry}]\n  {set}"),
        ),
        (
            "version = 2\nroot = \"/x\"".into(),
            format!("version = 2\nroot = \"/x\"\n\n[{registry}]\n{set}\n"),
        ),
        (
            "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n    config_path = ''\n"
                .into(),
            format!("version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n    {set}\n"),
        ),
        (
            format!("version = 2\n[{registry}]\nconfig_path = \"/x:/etc/containerd/certs.d\"\n"),
            format!("version = 2\n[{registry}]\nconfig_path = \"/x:/etc/containerd/certs.d\"\n"),
        ),
    ] {
        assert_eq!(merged(&before).0.as_ref(), Some(&after), "{before}");
        assert_eq!(merged(&after).0, Some(after));
    }
    for (before, said) in [
        ("root = \"/x\"\n".to_owned(), "version 1"),
        (
            format!("version = 2\n[{registry}]\nconfig_path = \"/other\"\n"),
            "/other",
        ),
        (
            format!("version = 2\n[{registry}.mirrors.\"docker.io\"]\nendpoint = []\n"),
            "old way",
        ),
        (
            format!("version = 2\n[{registry}]\nmirrors = {{ a = 1 }}\n"),
            "old way",
        ),
        ("version = 2\nplugins = { }\n".to_owned(), "on one line"),
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nregistry.x = 1\n".to_owned(),
            "on one line",
        ),
    ] {
        let (main, notes) = merged(&before);
        assert_eq!(main, None, "{before}");
        assert!(notes.contains(said), "{notes}");
    }
}

#[test]
fn credentials_are_for_root_alone_and_translated() {
    let logins = parse_logins(
        r#"{"auths":{"localhost:5000":{"auth":"dTpw","email":"x"},"https://index.docker.io/v1/":{"identitytoken":"t"},"quay.io":{}},"credHelpers":{"gcr.io":"gcloud"},"HttpHeaders":{}}"#,
    )
    .unwrap();
    let with = Settings {
        logins,
        home: "/home/root/".into(),
        ..plain()
    };
    let emission = emitted(Profile::CriO, &with, &[]);
    let auth = emission
        .files
        .iter()
        .find(|file| file.path == logins::CONTAINERS)
        .unwrap();
    assert!(auth.secret);
    let value: serde_json::Value = serde_json::from_str(&auth.content).unwrap();
    assert_eq!(
        value["auths"]["10.0.2.2:5000"],
        serde_json::json!({"auth": "dTpw"})
    );
    assert!(value.get("HttpHeaders").is_none());
    assert!(
        file(&emission, crio::DROP).contains("global_auth_file = \"/etc/containers/auth.json\"")
    );
    assert!(
        emission
            .notes
            .iter()
            .any(|note| note.contains("gcr.io, quay.io"))
    );
    let before =
        r#"{"auths":{"other":{"auth":"eDp5"},"10.0.2.2:5000":{"auth":"old"}},"credsStore":"pass"}"#;
    let emission = emitted(
        Profile::Docker,
        &with,
        &[("/home/root/.docker/config.json", before)],
    );
    let merged: serde_json::Value =
        serde_json::from_str(file(&emission, "/home/root/.docker/config.json")).unwrap();
    assert_eq!(merged["auths"]["other"]["auth"], "eDp5");
    assert_eq!(merged["auths"]["10.0.2.2:5000"]["auth"], "dTpw");
    assert!(
        emission
            .notes
            .iter()
            .any(|note| note.contains("credsStore"))
    );
    assert!(!format!("{with:?}").contains("dTpw"));
    for bad in [
        "",
        "[]",
        "{}",
        r#"{"credsStore":"pass","auths":{"a":{}}}"#,
        r#"{"auths":{"a":{"auth":"hunter2""#,
    ] {
        let error = parse_logins(bad).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn home_of_root() {
    for (passwd, home) in [
        (None, "/root"),
        (
            Some("daemon:x:1:1::/:\nroot:x:0:0:root:/home/root:/bin/sh\n"),
            "/home/root",
        ),
        (Some("root:x:0:0:root:/../..:/bin/sh\n"), "/root"),
        (Some("root:x:0:0:root::/bin/sh\n"), "/root"),
        (Some("root:x"), "/root"),
    ] {
        assert_eq!(root_home(passwd), home);
    }
}
