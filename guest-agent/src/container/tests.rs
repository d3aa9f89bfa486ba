use super::{record::tests::record, *};

struct Bench {
    state: tempfile::TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path()).unwrap();
        Self { state, store }
    }

    fn put(&self, id: char, name: &str) -> PathBuf {
        let record = record(id, name);
        let dir = self.state.path().join("containers").join(&record.id);
        fs::create_dir_all(&dir).unwrap();
        record.save(&dir, false).unwrap();
        dir
    }

    fn open(&self) -> (Book, Vec<PathBuf>) {
        Book::open(self.state.path().join("containers"), &self.store).unwrap()
    }
}

#[test]
fn containers_are_found_again_and_only_what_never_was_one_is_rubbish() {
    let bench = Bench::new();
    assert!(bench.open().1.is_empty());
    bench.put('a', "web");
    let torn = bench.put('b', "torn");
    fs::write(torn.join("container.json"), b"{\"format\":1,").unwrap();
    let passing = bench.state.path().join("containers").join("c".repeat(64));
    fs::create_dir_all(passing.join("upper/etc")).unwrap();
    let later = bench.put('d', "later");
    fs::write(later.join("container.json"), b"{\"format\":99}").unwrap();
    let (book, leftovers) = bench.open();
    assert_eq!(
        leftovers,
        [passing],
        "what cannot be read may be read one day"
    );
    assert_eq!(book.find("web").unwrap().id, "a".repeat(64));
    assert_eq!(book.find("aaa").unwrap().id, "a".repeat(64));
    assert_eq!(book.find("torn").unwrap_err().code, FailureCode::NotFound);
    // Its image is gone: it stays, and cannot be started.
    assert!(book.find("web").unwrap().image.is_none());
    assert_eq!(book.running(), 0);
}

#[test]
fn a_name_has_one_owner() {
    let bench = Bench::new();
    bench.put('a', "web");
    bench.put('b', "db");
    let (book, _) = bench.open();
    let db = book.find("db").unwrap();
    assert!(
        book.rename(&db, "web")
            .unwrap_err()
            .message
            .contains("in use")
    );
    assert_eq!(
        book.rename(&db, "no name").unwrap_err().code,
        FailureCode::Usage
    );
    book.rename(&db, "store").unwrap();
    drop((book, db));
    let (book, _) = bench.open();
    assert!(book.find("db").is_err());
    let entry = book.find("store").unwrap();
    book.forget(&entry);
    assert!(book.find("store").is_err());
    let (book, leftovers) = bench.open();
    assert_eq!(leftovers, std::slice::from_ref(&entry.dir));
    assert!(book.find("web").is_ok());
}
