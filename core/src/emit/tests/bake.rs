//! What bake writes into a target, a second time, over another, interrupted, and taken back.

use core::convert::Infallible;

use super::*;
use crate::digest::Digest;
use crate::emit::state::{Action, Content, Files, Plan, STATE, State, bake, undo};

/// A target in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tree(BTreeMap<String, Content>);

impl From<EmitError> for Infallible {
    fn from(error: EmitError) -> Self {
        panic!("{error}")
    }
}

impl Tree {
    fn with(files: &[(&str, &str)]) -> Self {
        let mut tree = Self::default();
        for (path, text) in files {
            tree.put(path, text, 0o644);
        }
        tree
    }

    fn put(&mut self, path: &str, text: &str, mode: u32) {
        let text = text.into();
        self.0.insert(path.into(), Content { text, mode });
    }

    fn text(&self, path: &str) -> &str {
        let known: Vec<_> = self.0.keys().collect();
        &self
            .0
            .get(path)
            .unwrap_or_else(|| panic!("no {path} in {known:?}"))
            .text
    }

    fn apply(&mut self, plan: &Plan) {
        for change in &plan.changes {
            match (change.action, &change.new) {
                (Action::Create | Action::Change, Some(new)) => {
                    let old = self.0.get(&change.path).map_or(0o644, |old| old.mode);
                    self.put(&change.path, new, change.mode.unwrap_or(old));
                }
                (Action::Remove, None) => {
                    self.0.remove(&change.path).unwrap();
                }
                (Action::Keep | Action::Leave, _) => {}
                other => panic!("{other:?}"),
            }
        }
        if plan.state.is_empty() {
            self.0.remove(STATE);
        } else {
            self.put(STATE, &plan.state.to_json(), 0o600);
        }
    }

    fn state(&self) -> State {
        self.0.get(STATE).map_or_else(State::default, |content| {
            State::parse(&content.text).unwrap()
        })
    }

    fn bake(&mut self, profiles: &[Profile], settings: &Settings) -> Plan {
        let Ok(plan) = bake(profiles, settings, &self.state(), self);
        self.apply(&plan);
        plan
    }

    fn undo(&mut self) -> Plan {
        let Ok(plan) = undo(&self.state(), self);
        self.apply(&plan);
        plan
    }
}

impl Files for Tree {
    type Error = Infallible;

    fn read(&mut self, path: &str) -> Result<Option<Content>, Infallible> {
        Ok(self.0.get(path).cloned())
    }

    fn drops(&mut self, directory: &str) -> Result<Vec<String>, Infallible> {
        let prefix = format!("{directory}/");
        let names = self.0.keys().filter_map(|path| path.strip_prefix(&prefix));
        Ok(names
            .filter(|name| name.rsplit('.').next() == Some("conf"))
            .map(str::to_owned)
            .collect())
    }
}

#[test]
fn a_second_bake_changes_nothing_and_undo_takes_everything_back() {
    let before = Tree::with(&[
        (docker::DAEMON, "{\"log-level\":\"warn\"}"),
        (trust::BUNDLE, "# authorities\n"),
        (
            podman::MAIN,
            "unqualified-search-registries = [\"docker.io\"]\n",
        ),
        (
            "/root/.docker/config.json",
            "{\"auths\":{\"é\":{\"auth\":\"eDp5\"}}}",
        ),
    ]);
    let mut tree = before.clone();
    let mut logins = Logins::default();
    logins.insert("localhost:5000", Login::basic("yocto", "pw"));
    let settings = Settings { logins, ..secure() };
    let insecure = Settings {
        insecure: vec!["lab:5000".into()],
        ..settings
    };
    let first = tree.bake(&Profile::ALL, &insecure);
    assert!(first.does_something());
    assert_eq!(tree.0["/root/.docker/config.json"].mode, 0o600);
    let baked = tree.clone();
    let second = tree.bake(&Profile::ALL, &insecure);
    assert!(!second.does_something(), "{:?}", second.changes);
    assert_eq!(tree, baked);
    let back = tree.undo();
    assert!(
        back.changes
            .iter()
            .all(|change| change.action != Action::Leave)
    );
    assert_eq!(tree, before);
}

#[test]
fn another_bake_leaves_no_trace_of_the_last() {
    let before = Tree::with(&[(docker::DAEMON, "{}"), (trust::BUNDLE, "")]);
    let mut once = before.clone();
    once.bake(&[Profile::Docker], &plain());
    let mut twice = before.clone();
    twice.bake(
        &[Profile::Docker],
        &settings("old:5000", Trust::Authority(pem())),
    );
    twice.bake(&[Profile::Docker], &settings("older:5000", Trust::Insecure));
    twice.bake(&[Profile::Docker], &plain());
    assert_eq!(twice, once);
    // A second profile adds; the first keeps what it has.
    twice.bake(&[Profile::Podman], &secure());
    assert!(twice.text(docker::DAEMON).contains("10.0.2.2:5000"));
    assert!(twice.text(trust::BUNDLE).contains("BEGIN"));
    assert_eq!(twice.state().profiles(), [Profile::Docker, Profile::Podman]);
    twice.undo();
    assert_eq!(twice, before);
}

#[test]
fn what_somebody_changed_since_is_left_and_named() {
    let mut tree = Tree::default();
    tree.bake(&[Profile::Docker, Profile::Podman], &plain());
    let mut edited = tree.text(docker::DAEMON).to_owned();
    edited.push(' ');
    tree.put(docker::DAEMON, &edited, 0o644);
    let plan = tree.undo();
    let left: Vec<_> = plan
        .changes
        .iter()
        .filter(|change| change.action == Action::Leave)
        .collect();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].path, docker::DAEMON);
    assert_eq!(tree.0.keys().collect::<Vec<_>>(), [docker::DAEMON]);
}

#[test]
fn an_interrupted_bake_is_finished_or_taken_back() {
    let pristine = Tree::with(&[(docker::DAEMON, "{\"a\":1}"), (trust::BUNDLE, "x")]);
    let mut older = pristine.clone();
    older.bake(&Profile::ALL, &settings("older:5000/x", Trust::Insecure));
    for before in [pristine.clone(), older] {
        let Ok(plan) = bake(
            &Profile::ALL,
            &secure(),
            &before.state(),
            &mut before.clone(),
        );
        let mut whole = before.clone();
        whole.apply(&plan);
        for done in 0..=plan.changes.len() {
            // The memory is written first, then the files one by one.
            let mut tree = before.clone();
            tree.apply(&Plan {
                changes: plan.changes[..done].to_vec(),
                state: plan.interim.clone(),
                ..Plan::default()
            });
            let mut finished = tree.clone();
            finished.bake(&Profile::ALL, &secure());
            assert_eq!(finished, whole, "after {done}");
            tree.undo();
            assert_eq!(tree, pristine, "after {done}");
        }
    }
}

#[test]
fn a_hostile_memory_is_refused() {
    let state = |path: &str| {
        format!(
            r#"{{"version":1,"files":[{{"path":"{path}","profiles":["docker"],"after":"{}"}}],"directories":[]}}"#,
            Digest::sha256(b"")
        )
    };
    assert!(State::parse(&state("/etc/docker/daemon.json")).is_ok());
    for path in ["", "/", "etc/x", "/../etc/x", "/etc//x", "/etc/./x", STATE] {
        assert!(State::parse(&state(path)).is_err(), "{path}");
    }
    for text in ["", "{}", r#"{"version":2,"files":[],"directories":[]}"#] {
        assert!(State::parse(text).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn any_target_gives_an_answer_and_comes_back(
        texts in prop::collection::vec("[\\[\\]{}=:,\"'# \na-c1é]{0,24}", 6),
        present in prop::collection::vec(any::<bool>(), 6),
        choice in 0..5_usize, with_ca: bool,
    ) {
        let paths = [docker::DAEMON, podman::MAIN, containerd::MAIN, vdkr::CONF, trust::BUNDLE, DROP];
        let mut tree = Tree::default();
        for ((path, text), present) in paths.iter().zip(&texts).zip(&present) {
            if *present {
                tree.put(path, text, 0o644);
            }
        }
        let settings = if with_ca { secure() } else { plain() };
        let profiles = [Profile::ALL[choice]];
        if emit(&profiles, &settings, &tree.0.iter().map(|(p, c)| (p.clone(), c.text.clone())).collect()).is_ok() {
            let before = tree.clone();
            tree.bake(&profiles, &settings);
            prop_assert!(!tree.bake(&profiles, &settings).does_something());
            tree.undo();
            prop_assert_eq!(tree, before);
        }
    }
}

#[test]
fn openssl_finds_the_ca_in_the_directory() {
    // Two certificates of one subject.
    let known: &[(&str, &str)] = &include!("../subject/known.in");
    let [(hash, own), (same, twin)] = [known[0], known[1]];
    assert_eq!(hash, same);
    let text = |body: &str| {
        let pem = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        certificates(&pem).unwrap()
    };
    let (own, twin) = (text(own), text(twin));
    let at = |number: u32| format!("/etc/ssl/certs/{hash}.{number}");
    let trusting =
        |authority: &str| settings("lab:5000/yocto", Trust::Authority(authority.to_owned()));
    let bundle = Tree::with(&[(trust::BUNDLE, "# authorities\n")]);

    let mut tree = bundle.clone();
    tree.bake(&[Profile::Docker], &trusting(&own));
    assert_eq!(tree.text(&at(0)), own);
    tree.bake(&[Profile::Podman], &trusting(&own));
    // The second profile needs it still.
    tree.bake(
        &[Profile::Docker],
        &settings("lab:5000/yocto", Trust::Public),
    );
    assert_eq!(tree.text(&at(0)), own);
    // A renewed CA takes the place of the old.
    tree.bake(&[Profile::Docker, Profile::Podman], &trusting(&twin));
    assert_eq!(tree.text(&at(0)), twin);
    assert!(!tree.0.contains_key(&at(1)));
    tree.undo();
    assert_eq!(tree, bundle);

    // What others trust is left alone, and what is there is not there twice.
    let mut shared = bundle.clone();
    shared.put(&at(0), &twin, 0o644);
    for (authority, mine) in [(&own, true), (&twin, false)] {
        let mut tree = shared.clone();
        tree.bake(&Profile::ALL, &trusting(authority));
        assert_eq!(tree.text(&at(0)), twin);
        assert_eq!(tree.0.contains_key(&at(1)), mine);
        let again = tree.bake(&Profile::ALL, &trusting(authority));
        assert!(!again.does_something(), "{:?}", again.changes);
        tree.undo();
        assert_eq!(tree, shared);
    }
    let mut both = bundle.clone();
    both.bake(&Profile::ALL, &trusting(&format!("{own}{twin}")));
    assert_eq!((both.text(&at(0)), both.text(&at(1))), (&*own, &*twin));

    // No room, or a name that cannot be compared: said.
    let mut full = bundle.clone();
    for number in 0..10 {
        full.put(&at(number), &twin.replace('A', "B"), 0o644);
    }
    for (mut tree, settings) in [(full, trusting(&own)), (bundle, secure())] {
        let notes = tree.bake(&[Profile::Docker], &settings).notes;
        let said = notes
            .iter()
            .any(|note| note.contains("update-ca-certificates has run"));
        assert!(said, "{notes:?}");
    }
    // Without a trust store there is nothing to put it in.
    let mut none = Tree::default();
    none.bake(&Profile::ALL, &trusting(&own));
    assert!(!none.0.contains_key(&at(0)));
}
