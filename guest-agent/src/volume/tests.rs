use super::*;

fn volumes() -> (tempfile::TempDir, Volumes) {
    let place = tempfile::tempdir().unwrap();
    let volumes = Volumes::new(place.path().join("volumes"));
    (place, volumes)
}

fn named(name: &str) -> NewVolume {
    NewVolume::named(Some(name.to_owned())).unwrap()
}

fn names(volumes: &Volumes) -> Vec<String> {
    let rows = volumes.list(&[], &|_| false).unwrap();
    rows.into_iter().map(|row| row.name).collect()
}

#[test]
fn volumes_come_and_go_and_their_content_stays_between() {
    let (_place, volumes) = volumes();
    assert!(names(&volumes).is_empty());
    let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    volumes
        .create(named("data").labelled(labels.clone()))
        .unwrap();
    let data = volumes.data("data").unwrap();
    fs::write(data.join("file"), "content").unwrap();
    let wanted = ["data".to_owned()];
    let row = volumes
        .list(&wanted, &|name| name == "data")
        .unwrap()
        .remove(0);
    assert_eq!(
        (row.labels, row.in_use, row.anonymous),
        (labels, true, false)
    );
    assert!(row.created > 1_600_000_000);
    assert_eq!(Path::new(&row.mountpoint), data);

    // A second making changes nothing.
    volumes.create(named("data")).unwrap();
    assert_eq!(
        fs::read(volumes.data("data").unwrap().join("file")).unwrap(),
        b"content"
    );
    let refused = volumes.discard(&wanted, false, &|_| true);
    assert!(matches!(refused, Err(VolumeError::InUse(_))));
    assert!(
        volumes
            .discard_unused(true, &|_| true)
            .unwrap()
            .names
            .is_empty()
    );
    let gone = volumes.discard(&wanted, false, &|_| false).unwrap();
    assert!(names(&volumes).is_empty());
    assert!(gone.remove().unwrap() > 0);
    assert!(volumes.leftovers().dirs.is_empty());
    let missing = volumes.discard(&wanted, false, &|_| false);
    assert!(matches!(missing, Err(VolumeError::Missing(_))));
    assert!(
        volumes
            .discard(&wanted, true, &|_| false)
            .unwrap()
            .names
            .is_empty()
    );
}

#[test]
fn what_nobody_named_goes_first() {
    let (_place, volumes) = volumes();
    let anonymous = volumes.create(NewVolume::named(None).unwrap()).unwrap();
    assert_eq!(anonymous.len(), 64);
    volumes.create(named("named")).unwrap();
    let both = [anonymous.as_str(), "named", "missing", "../x"];
    assert_eq!(
        volumes.anonymous(both.into_iter()),
        std::slice::from_ref(&anonymous)
    );
    let unused = |all| volumes.discard_unused(all, &|_| false).unwrap().names;
    assert_eq!(unused(false), [anonymous]);
    assert_eq!(names(&volumes), ["named"]);
    assert_eq!(unused(true), ["named"]);
}

#[test]
fn one_that_cannot_go_keeps_all() {
    let (_place, volumes) = volumes();
    volumes.create(named("v1")).unwrap();
    volumes.data("v2").unwrap();
    let both = ["v1".to_owned(), "v2".to_owned(), "v1".to_owned()];
    assert!(volumes.discard(&both, true, &|name| name == "v2").is_err());
    assert_eq!(names(&volumes), ["v1", "v2"]);
}

#[test]
fn names_never_lead_out_of_the_directory() {
    let (place, volumes) = volumes();
    fs::create_dir(place.path().join("other")).unwrap();
    for bad in ["../other", ".", "..", ".new-x", "a/b", "", "x"] {
        assert!(NewVolume::named(Some(bad.to_owned())).is_err(), "{bad}");
        assert!(volumes.data(bad).is_err(), "{bad}");
        assert!(
            volumes.list(&[bad.to_owned()], &|_| false).is_err(),
            "{bad}"
        );
        assert!(
            volumes
                .discard(&[bad.to_owned()], false, &|_| false)
                .is_err(),
            "{bad}"
        );
    }
    assert!(place.path().join("other").is_dir());
}

#[test]
fn what_a_crash_left_is_found_and_a_broken_record_loses_no_volume() {
    let (_place, volumes) = volumes();
    volumes.create(named("kept")).unwrap();
    fs::write(volumes.dir.join("kept").join(RECORD), "{half").unwrap();
    for left in [".new-1", ".gone-2"] {
        fs::create_dir_all(volumes.dir.join(left).join(DATA).join("deep")).unwrap();
    }
    assert_eq!(names(&volumes), ["kept"]);
    let left = volumes.leftovers();
    assert_eq!(left.dirs.len(), 2);
    left.remove().unwrap();
    assert!(volumes.leftovers().dirs.is_empty());
    assert_eq!(names(&volumes), ["kept"]);
}

#[test]
fn two_who_want_the_same_volume_at_a_time_both_have_it() {
    let (place, volumes) = volumes();
    for round in 0..20 {
        let name = format!("shared{round}");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(volumes.create(named(&name)).unwrap(), name));
            }
        });
    }
    assert_eq!(names(&volumes).len(), 20);
    let made = fs::read_dir(place.path().join("volumes")).unwrap();
    assert_eq!(
        made.count(),
        20,
        "nothing is left of those that came second"
    );
}
