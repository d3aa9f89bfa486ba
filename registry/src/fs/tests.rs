use std::os::unix::fs::symlink;

use super::*;

/// Both ways of resolving a path must behave alike.
fn both(check: impl Fn(&Path, Fs)) {
    for openat2 in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let Ok(mut inner) = Arc::try_unwrap(Fs::open(dir.path()).unwrap().0) else {
            unreachable!()
        };
        inner.openat2 &= openat2;
        check(dir.path(), Fs(Arc::new(inner)));
    }
}

fn put(fs: &Fs, path: &str, bytes: &[u8]) {
    fs.create(path).unwrap().write_at(bytes, 0).unwrap();
}

#[test]
fn files_are_made_read_and_moved() {
    both(|_, fs| {
        assert!(fs.mkdir("a").unwrap());
        assert!(!fs.mkdir("a").unwrap());
        assert!(fs.mkdir("a/b").unwrap());
        put(&fs, "a/one", b"content");
        assert_eq!(fs.create("a/one").unwrap_err().errno, Errno::EXIST);
        fs.rename("a/one", "a/b/two").unwrap();
        fs.sync_dir("a/b").unwrap();
        let (bytes, stat) = fs.read("a/b/two", 100).unwrap();
        assert_eq!(bytes, b"content");
        assert_eq!((stat.kind, stat.size), (Kind::File, 7));
        assert_eq!(fs.read("a/b/two", 3).unwrap().0, b"con");
        assert_eq!(fs.stat("a/b/two").unwrap(), Some(stat));
        assert_eq!(fs.stat_known("a/b/two").unwrap(), Some(stat));
        assert_eq!(fs.stat("a/one").unwrap(), None);
        let mut names = Vec::new();
        fs.list("a", |name, kind| names.push((name.to_owned(), kind)))
            .unwrap();
        assert_eq!(names, [("b".to_owned(), Kind::Directory)]);
        assert!(fs.remove_dir("a/b").is_err(), "not empty");
        assert!(fs.remove_file("a/b/two").unwrap());
        assert!(!fs.remove_file("a/b/two").unwrap());
        assert!(fs.remove_dir("a/b").unwrap());
        assert!(fs.space().unwrap().total > 0);
    });
}

#[test]
fn symbolic_links_are_never_followed() {
    both(|base, fs| {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        fs.mkdir("real").unwrap();
        put(&fs, "real/file", b"inside");
        symlink(outside.path(), base.join("out")).unwrap();
        symlink("real", base.join("in")).unwrap();
        symlink("real/file", base.join("file")).unwrap();
        for path in [
            "out/secret",
            "in/file",
            "file",
            "../x",
            "real/../../x",
            "/etc/passwd",
        ] {
            assert!(fs.read(path, 10).is_err(), "{path}");
            assert!(
                fs.create(&format!("{path}.new")).is_err() || path == "file",
                "{path}"
            );
        }
        for path in ["out/secret", "in/file", "file"] {
            // At the end of a path the link itself may be seen, and is nothing that is used. It is not
            // taken for nothing, either.
            match fs.stat(path) {
                Ok(seen) => assert_eq!(seen.map(|stat| stat.kind), Some(Kind::Other), "{path}"),
                Err(error) => assert_eq!(error.errno, Errno::LOOP, "{path}"),
            }
            let error = fs.read(path, 10).unwrap_err();
            assert!(!error.is_not_found(), "{path}: {error}");
        }
        assert!(fs.mkdir("out/made").is_err());
        assert!(fs.rename("real/file", "out/moved").is_err());
        assert!(fs.remove_file("out/secret").is_err() || !fs.remove_file("out/secret").unwrap());
        assert!(outside.path().join("secret").exists());
        for path in ["out", "in", "out/below"] {
            let error = fs.list(path, |_, _| {}).unwrap_err();
            assert!(!error.is_not_found(), "{path}: {error}");
        }
        assert!(fs.list("real/file", |_, _| {}).unwrap_err().is_not_found());
    });
}

#[test]
fn strange_entries_are_not_opened() {
    both(|base, fs| {
        let made = std::process::Command::new("mkfifo")
            .arg(base.join("pipe"))
            .status()
            .unwrap();
        assert!(made.success());
        assert!(fs.open_file("pipe").unwrap_err().is_not_found());
        fs.mkdir("dir").unwrap();
        assert!(fs.open_file("dir").is_err());
        let mut kinds = Vec::new();
        fs.list(".", |name, kind| kinds.push((name.to_owned(), kind)))
            .unwrap();
        kinds.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(
            kinds,
            [
                ("dir".to_owned(), Kind::Directory),
                ("pipe".to_owned(), Kind::Other)
            ]
        );
    });
}

#[test]
fn a_file_can_be_locked_once() {
    both(|_, fs| {
        put(&fs, "file", b"1");
        let (one, _) = fs.reopen("file").unwrap();
        let (two, _) = fs.reopen("file").unwrap();
        assert!(one.try_lock().unwrap() && one.try_lock().unwrap());
        assert!(!two.try_lock().unwrap());
        drop(one);
        assert!(two.try_lock().unwrap());
    });
}

#[test]
fn names_that_are_no_text_are_told() {
    use std::os::unix::ffi::OsStrExt as _;
    both(|base, fs| {
        std::fs::create_dir(base.join(std::ffi::OsStr::from_bytes(b"a\xff"))).unwrap();
        let mut kinds = Vec::new();
        fs.list(".", |name, kind| kinds.push((name.to_owned(), kind)))
            .unwrap();
        assert_eq!(kinds, [("a\u{fffd}".to_owned(), Kind::Other)]);
    });
}

#[test]
fn a_rewritten_file_has_another_stamp() {
    both(|_, fs| {
        put(&fs, "one", b"1");
        let before = fs.stat("one").unwrap().unwrap().stamp;
        put(&fs, "two", b"2");
        fs.rename("two", "one").unwrap();
        let after = fs.stat_known("one").unwrap().unwrap().stamp;
        assert_ne!(before, after);
        let now = u64::try_from(after.changed.0).unwrap();
        assert!(!after.settled(now));
        assert!(!after.settled(now + 2));
        assert!(after.settled(now + 3));
    });
}

#[test]
fn directories_can_be_locked() {
    both(|_, fs| {
        fs.mkdir("d").unwrap();
        let held = fs.try_lock_dir("d", true).unwrap();
        assert!(held.is_some());
        assert!(fs.try_lock_dir("d", false).unwrap().is_none());
        drop(held);
        let shared = fs.try_lock_dir("d", false).unwrap();
        assert!(shared.is_some());
        assert!(fs.try_lock_dir("d", false).unwrap().is_some());
    });
}

#[test]
fn a_lock_is_waited_for_and_not_for_ever() {
    both(|base, fs| {
        fs.mkdir("d").unwrap();
        let held = fs.try_lock_dir("d", false).unwrap();
        let error = fs
            .lock_dir("d", true, Duration::from_millis(30))
            .unwrap_err();
        assert!(error.is_locked(), "{error}");
        assert_eq!(error.path, base.join("d"));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(30));
                drop(held);
            });
            let patience = Duration::from_mins(1);
            assert!(fs.lock_dir("d", true, patience).unwrap().is_some());
        });
    });
}

#[test]
fn what_is_made_is_for_those_who_may_use_the_root() {
    use std::os::unix::fs::PermissionsExt as _;
    for (root, directory, file) in [
        (0o700, 0o700, 0o600),
        (0o755, 0o755, 0o644),
        (0o750, 0o750, 0o640),
        (0o2710, 0o710, 0o600),
        (0o500, 0o700, 0o600),
    ] {
        assert_eq!(modes(root), (directory, file), "{root:o}");
    }
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let made = dir.path().join("above/storage");
    make_root(&made).unwrap();
    assert_eq!(mode(&made), 0o700);
    let shared = dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o750)).unwrap();
    make_root(&shared).unwrap();
    assert_eq!(mode(&shared), 0o750, "it was there");
    for (root, directory, file) in [(made, 0o700, 0o600), (shared, 0o750, 0o640)] {
        let fs = Fs::open(&root).unwrap();
        fs.mkdir("d").unwrap();
        put(&fs, "d/f", b"");
        assert_eq!(mode(&root.join("d")), directory);
        assert_eq!(mode(&root.join("d/f")), file);
    }
}

#[test]
fn a_plan_records_fails_cuts_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let plan = Arc::new(FaultPlan::new());
    plan.spoil(1, Fault::Short(2));
    plan.spoil(3, Fault::Error(Errno::NOSPC));
    plan.spoil(4, Fault::Error(Errno::INTR));
    plan.spoil(6, Fault::Crash);
    let fs = Fs::open_with(dir.path(), Some(Arc::clone(&plan))).unwrap();

    let file = fs.create("f").unwrap();
    file.write_at(b"hello", 0).unwrap();
    let error = file.write_at(b"more", 5).unwrap_err();
    assert!(error.is_no_space());
    assert!(
        error.to_string().starts_with("cannot write to /"),
        "{error}"
    );
    file.sync().unwrap();
    assert!(fs.mkdir("never").is_err());
    assert!(fs.mkdir("nor this").is_err());
    assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), b"hello");
    assert!(!dir.path().join("never").exists());

    let writes: Vec<_> = plan.ops().into_iter().filter(Op::mutates).collect();
    assert_eq!(
        writes,
        [
            Op::Create {
                path: "f".into(),
                file: 1
            },
            Op::Write {
                file: 1,
                offset: 0,
                bytes: b"he".to_vec()
            },
            Op::Write {
                file: 1,
                offset: 2,
                bytes: b"llo".to_vec()
            },
            Op::SyncFile { file: 1 },
        ]
    );
}
