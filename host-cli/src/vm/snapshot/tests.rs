use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use super::*;

/// What is done to a snapshot, and the words that it is refused with.
type Change<'a> = (&'static str, &'a dyn Fn());

const PATIENCE: Duration = Duration::from_secs(30);

fn key(name: &str) -> Key {
    Key::new(&json!({ "name": name }))
}

async fn unfinished(snapshots: &Snapshots, name: &str) -> Unfinished {
    match snapshots.begin(&key(name), 1, PATIENCE).await.unwrap() {
        Turn::Build(unfinished) => unfinished,
        Turn::Saved(_) => panic!("{name} is there already"),
    }
}

async fn build(snapshots: &Snapshots, name: &str) -> Saved {
    let mut made = unfinished(snapshots, name).await;
    made.memory.write_all(b"memory").unwrap();
    made.state.write_all(b"state").unwrap();
    snapshots.publish(made).unwrap()
}

fn names(snapshots: &Snapshots) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(&snapshots.dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn built_once_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::in_directory(dir.path());
    assert!(snapshots.find(&key("a")).unwrap().is_none());
    let mut saved = build(&snapshots, "a").await;
    assert_eq!(saved.memory.metadata().unwrap().len(), 1 << 20);
    let mut state = String::new();
    saved.state.read_to_string(&mut state).unwrap();
    assert_eq!(state, "state");
    assert!(snapshots.find(&key("a")).unwrap().is_some());
    assert!(snapshots.find(&key("b")).unwrap().is_none());
    let again = snapshots.begin(&key("a"), 1, PATIENCE).await.unwrap();
    assert!(matches!(again, Turn::Saved(_)));

    for path in [&snapshots.dir, &snapshots.place(&key("a"))] {
        let mode = fs::metadata(path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", path.display());
    }
    for name in [DOCUMENT, MEMORY, STATE] {
        let path = snapshots.place(&key("a")).join(name);
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn what_was_changed_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::in_directory(dir.path());
    let key = key("a");
    let place = snapshots.place(&key);
    let changes: [Change<'_>; 6] = [
        ("state is damaged", &|| {
            fs::write(place.join(STATE), "other").unwrap();
        }),
        ("memory is damaged", &|| {
            let memory = File::options().write(true).open(place.join(MEMORY));
            memory.unwrap().write_all(b"x").unwrap();
        }),
        ("memory is damaged", &|| {
            let memory = File::options().write(true).open(place.join(MEMORY));
            memory.unwrap().set_len(7).unwrap();
        }),
        ("snapshot.json is damaged", &|| {
            fs::write(place.join(DOCUMENT), "{").unwrap();
        }),
        ("memory:", &|| fs::remove_file(place.join(MEMORY)).unwrap()),
        ("state:", &|| {
            fs::remove_file(place.join(STATE)).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", place.join(STATE)).unwrap();
        }),
    ];
    for (words, change) in changes {
        build(&snapshots, "a").await;
        change();
        let error = snapshots.find(&key).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        snapshots.discard(&key);
        assert!(snapshots.find(&key).unwrap().is_none());
    }
}

#[tokio::test]
async fn the_snapshots_used_last_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::in_directory(dir.path());
    for number in 0..KEPT {
        build(&snapshots, &number.to_string()).await;
        let age = Duration::from_secs(1000 - number as u64);
        let used = File::open(snapshots.place(&key(&number.to_string())).join(DOCUMENT)).unwrap();
        used.set_modified(SystemTime::now() - age).unwrap();
    }
    // The first is used again, so the second is the oldest.
    snapshots.find(&key("0")).unwrap().unwrap();
    build(&snapshots, "new").await;
    let left = names(&snapshots);
    assert_eq!(left.len(), KEPT + 1, "{left:?}");
    assert!(left.contains(&key("0").0) && !left.contains(&key("1").0));
}

#[tokio::test]
async fn what_a_kill_leaves_is_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::in_directory(dir.path());
    fs::create_dir_all(snapshots.dir.join("new-1/deep")).unwrap();
    fs::create_dir_all(snapshots.dir.join("gone-1")).unwrap();
    fs::set_permissions(&snapshots.dir, fs::Permissions::from_mode(0o700)).unwrap();
    // A snapshot without its description is none.
    fs::create_dir(snapshots.place(&key("a"))).unwrap();
    build(&snapshots, "a").await;
    assert_eq!(names(&snapshots), [key("a").0, "lock".to_owned()]);
    // Nor does a builder that gives up leave anything.
    drop(unfinished(&snapshots, "b").await);
    assert_eq!(names(&snapshots), [key("a").0, "lock".to_owned()]);
}

#[tokio::test]
async fn the_second_builder_waits_for_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::in_directory(dir.path());
    let mut first = unfinished(&snapshots, "a").await;
    let brief = Duration::from_millis(50);
    let busy = snapshots.begin(&key("a"), 1, brief).await.unwrap_err();
    assert!(matches!(busy, SnapshotError::Busy(_)), "{busy}");
    let waiting = tokio::spawn({
        let snapshots = snapshots.clone();
        async move { snapshots.begin(&key("a"), 1, PATIENCE).await }
    });
    tokio::time::sleep(brief).await;
    first.state.write_all(b"state").unwrap();
    snapshots.publish(first).unwrap();
    assert!(matches!(waiting.await.unwrap().unwrap(), Turn::Saved(_)));

    // One that dies lets the next one build.
    let dying = unfinished(&snapshots, "b").await;
    let waiting = tokio::spawn({
        let snapshots = snapshots.clone();
        async move { snapshots.begin(&key("b"), 1, PATIENCE).await }
    });
    tokio::time::sleep(brief).await;
    drop(dying);
    assert!(matches!(waiting.await.unwrap().unwrap(), Turn::Build(_)));
}

#[tokio::test]
async fn a_useless_snapshot_is_remembered_for_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::in_directory(dir.path());
    build(&snapshots, "a").await;
    snapshots.condemn(&key("a"), "it does not start");
    assert_eq!(snapshots.unusable(&key("a")).unwrap(), "it does not start");
    assert!(snapshots.unusable(&key("b")).is_none());
    assert!(snapshots.find(&key("a")).unwrap().is_none());
    let note = snapshots.dir.join(format!("{}.{UNUSABLE}", key("a").0));
    let long_ago = SystemTime::now() - UNUSABLE_FOR - Duration::from_secs(1);
    File::options()
        .write(true)
        .open(&note)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    assert!(snapshots.unusable(&key("a")).is_none());
    build(&snapshots, "a").await;
    assert!(!note.exists());
}

#[tokio::test]
async fn a_directory_of_others_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::in_directory(dir.path());
    build(&snapshots, "a").await;
    fs::set_permissions(&snapshots.dir, fs::Permissions::from_mode(0o777)).unwrap();
    let error = snapshots.find(&key("a")).unwrap_err();
    assert!(matches!(error, SnapshotError::Open(_)), "{error}");
    let error = snapshots.begin(&key("b"), 1, PATIENCE).await.unwrap_err();
    assert!(matches!(error, SnapshotError::Open(_)), "{error}");
}

#[test]
fn everything_in_the_facts_counts() {
    assert_eq!(key("a"), key("a"));
    assert_ne!(key("a"), key("b"));
    assert_eq!(key("a").0.len(), 32);
}
