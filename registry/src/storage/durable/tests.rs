use std::sync::Barrier;

use rustix::io::Errno;

use super::*;
use crate::fs::{Fault, FaultPlan, Op};

struct Bench {
    _dir: tempfile::TempDir,
    plan: Arc<FaultPlan>,
    fs: Fs,
    durable: Durable,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let plan = Arc::new(FaultPlan::new());
    let fs = Fs::open_with(dir.path(), Some(Arc::clone(&plan))).unwrap();
    fs.mkdir("tmp").unwrap();
    let durable = Durable::new(fs.clone());
    Bench {
        _dir: dir,
        plan,
        fs,
        durable,
    }
}

impl Bench {
    fn stage(&self, name: &str) -> Staged {
        let file = self.fs.create(&format!("tmp/{name}")).unwrap();
        file.write_at(name.as_bytes(), 0).unwrap();
        Staged::temporary(file)
    }

    fn place(&self, name: &str, to: &str) -> Result<()> {
        let mut batch = self.durable.batch();
        batch.place(self.stage(name), to.to_owned());
        batch.commit()
    }

    fn synced_since(&self, from: usize) -> Vec<String> {
        let ops = self.plan.ops();
        let dirs = ops[from..].iter().filter_map(|op| match op {
            Op::SyncDir { path } => Some(path.clone()),
            _ => None,
        });
        dirs.collect()
    }
}

#[test]
fn a_name_is_synced_up_to_what_is_known() {
    let bench = bench();
    bench.place("one", "a/b/one/data").unwrap();
    assert_eq!(bench.synced_since(0), [".", "a", "a/b", "a/b/one"]);
    let from = bench.plan.count();
    bench.place("two", "a/b/two/data").unwrap();
    assert_eq!(bench.synced_since(from), ["a/b", "a/b/two"]);
    assert_eq!(bench.fs.read("a/b/two/data", 10).unwrap().0, b"two");

    // Content first, then the name, then the directories.
    let ops: Vec<_> = bench.plan.ops().into_iter().filter(Op::mutates).collect();
    let at = |wanted: fn(&Op) -> bool| ops.iter().position(wanted).unwrap();
    let sync = at(|op| matches!(op, Op::SyncFile { .. }));
    let rename = at(|op| matches!(op, Op::Rename { .. }));
    let sync_dir = at(|op| matches!(op, Op::SyncDir { .. }));
    assert!(sync < rename && rename < sync_dir);
}

#[test]
fn what_others_made_is_synced_once_and_again_when_it_changes() {
    let bench = bench();
    bench.fs.mkdir("a").unwrap();
    let put = |content: &[u8]| {
        bench
            .fs
            .create("tmp/x")
            .unwrap()
            .write_at(content, 0)
            .unwrap();
        bench.fs.rename("tmp/x", "a/file").unwrap();
    };
    let require = || {
        let from = bench.plan.count();
        let stat = bench.fs.stat("a/file").unwrap().unwrap();
        let mut batch = bench.durable.batch();
        batch.require("a/file".to_owned(), stat.stamp);
        batch.commit().unwrap();
        bench.synced_since(from)
    };
    put(b"1");
    assert_eq!(require(), [".", "a"]);
    assert_eq!(require(), [""; 0]);
    put(b"2");
    assert_eq!(require(), ["a"]);
    bench.durable.forget("a");
    assert_eq!(require(), [".", "a"]);
}

#[test]
fn a_directory_that_went_away_is_made_again() {
    let bench = bench();
    bench.place("one", "a/b/c/one").unwrap();
    bench.fs.remove_file("a/b/c/one").unwrap();
    for dir in ["a/b/c", "a/b", "a"] {
        bench.fs.remove_dir(dir).unwrap();
    }
    let from = bench.plan.count();
    bench.place("two", "a/b/c/two").unwrap();
    assert_eq!(bench.synced_since(from), [".", "a", "a/b", "a/b/c"]);
}

#[test]
fn nothing_of_a_failed_batch_is_left_in_the_temporary_directory() {
    let bench = bench();
    let file = bench.stage("one");
    bench
        .plan
        .spoil(bench.plan.count(), Fault::Error(Errno::IO));
    let mut batch = bench.durable.batch();
    batch.place(file, "a/one".to_owned());
    assert!(batch.commit().is_err());
    let mut left = Vec::new();
    bench
        .fs
        .list("tmp", |name, _| left.push(name.to_owned()))
        .unwrap();
    assert_eq!(left, [""; 0]);
    assert!(bench.fs.stat("a/one").unwrap().is_none());
}

#[test]
fn a_failed_sync_is_not_believed_a_second_time() {
    let bench = bench();
    bench.place("one", "a/b/one").unwrap();
    let file = bench.stage("two");
    // Sync of the file, rename, look, then the directory.
    let number = bench.plan.count() + 3;
    bench.plan.spoil(number, Fault::Error(Errno::IO));
    let mut batch = bench.durable.batch();
    batch.place(file, "a/b/two".to_owned());
    assert!(batch.commit().is_err());
    assert!(
        bench.place("three", "a/b/three").is_err(),
        "the directory stays untrusted"
    );
    bench.place("four", "a/c/four").unwrap();

    let number = bench.plan.count() + 5;
    bench.plan.spoil(number, Fault::Error(Errno::NOSPC));
    assert!(bench.place("five", "a/c/five").unwrap_err().is_no_space());
    bench
        .place("six", "a/c/six")
        .expect("a full disk can be emptied");
}

#[test]
fn concurrent_batches_share_the_syncs_of_a_directory() {
    const EACH: usize = 8;
    const THREADS: usize = 8;
    let bench = bench();
    bench.place("first", "a/b/first").unwrap();
    let from = bench.plan.count();
    let barrier = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (bench, barrier) = (&bench, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for n in 0..EACH {
                    let name = format!("{thread}-{n}");
                    bench.place(&name, &format!("a/b/{name}")).unwrap();
                }
            });
        }
    });
    let syncs = bench
        .synced_since(from)
        .iter()
        .filter(|dir| *dir == "a/b")
        .count();
    assert!(syncs <= EACH * THREADS, "{syncs}");
    let mut found = 0;
    bench.fs.list("a/b", |_, _| found += 1).unwrap();
    assert_eq!(found, EACH * THREADS + 1);
    assert!(bench.durable.lock().under_way.is_empty());
}

#[test]
fn directories_that_went_away_are_made_again() {
    let bench = bench();
    bench.place("one", "a/b/one/data").unwrap();
    // As another process does it, or this one between a look and the next step.
    bench.fs.remove_file("a/b/one/data").unwrap();
    for dir in ["a/b/one", "a/b", "a"] {
        assert!(bench.fs.remove_dir(dir).unwrap(), "{dir}");
    }
    bench.place("two", "a/b/two/data").unwrap();
    assert_eq!(bench.fs.read("a/b/two/data", 10).unwrap().0, b"two");
    let from = bench.plan.count();
    bench.place("three", "a/b/three/data").unwrap();
    assert_eq!(bench.synced_since(from), ["a/b", "a/b/three"]);
}
