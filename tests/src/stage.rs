//! What the rows of a table share: a machine, say, that costs too much to have one for each.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A place for one row at a time. It is made for the first row and gone after the last, and a row that
/// fails leaves nothing to the next.
pub struct Stage<P> {
    start: Box<dyn Fn() -> P + Send + Sync>,
    clear: Box<dyn Fn(&P) + Send + Sync>,
    state: Mutex<State<P>>,
    ended: Condvar,
}

struct State<P> {
    /// The place, or why there is none.
    place: Option<Result<P, String>>,
    /// Rows that are still to come.
    left: usize,
}

impl<P> Stage<P> {
    /// A stage for this many rows. `clear` takes away what a failed row has left and panics when it
    /// cannot: the next row then gets a new place.
    pub fn new(
        rows: usize,
        start: impl Fn() -> P + Send + Sync + 'static,
        clear: impl Fn(&P) + Send + Sync + 'static,
    ) -> Self {
        Self {
            start: Box::new(start),
            clear: Box::new(clear),
            state: Mutex::new(State {
                place: None,
                left: rows,
            }),
            ended: Condvar::new(),
        }
    }

    /// Performs a row; says why it failed.
    pub fn perform(&self, row: impl FnOnce(&P)) -> Result<(), String> {
        self.perform_in(self.lock(), row)
    }

    /// Performs a row when all the others have been performed. It must be the last that is begun.
    pub fn perform_last(&self, row: impl FnOnce(&P)) -> Result<(), String> {
        let waited = self.ended.wait_while(self.lock(), |state| state.left > 1);
        self.perform_in(waited.unwrap_or_else(PoisonError::into_inner), row)
    }

    /// Takes the place away, whatever is still to come.
    pub fn end(&self) {
        self.lock().place = None;
    }

    fn perform_in(
        &self,
        mut state: MutexGuard<'_, State<P>>,
        row: impl FnOnce(&P),
    ) -> Result<(), String> {
        let place = state.place.get_or_insert_with(|| attempt(&self.start));
        let (result, cleared) = match place {
            Ok(place) => {
                let result = attempt(|| row(place));
                let cleared = result.is_ok() || attempt(|| (self.clear)(place)).is_ok();
                (result, cleared)
            }
            Err(reason) => (Err(format!("the stage cannot start: {reason}")), true),
        };
        state.left = state.left.saturating_sub(1);
        if state.left == 0 || !cleared {
            state.place = None;
        }
        self.ended.notify_all();
        result
    }

    fn lock(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a panic says is the error.
fn attempt<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let words = |said: Box<dyn Any + Send>| match said.downcast::<String>() {
        Ok(words) => *words,
        Err(said) => said
            .downcast::<&str>()
            .map_or_else(|_| "it panicked".to_owned(), |words| (*words).to_owned()),
    };
    catch_unwind(AssertUnwindSafe(work)).map_err(words)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// What has happened, in order.
    type Log = Arc<Mutex<Vec<String>>>;

    struct Place(Log);

    impl Place {
        fn say(&self, what: &str) {
            self.0.lock().unwrap().push(what.to_owned());
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            self.say("gone");
        }
    }

    fn stage(rows: usize, clears: bool) -> (Stage<Place>, Log) {
        let log = Log::default();
        let for_places = log.clone();
        let start = move || {
            let place = Place(for_places.clone());
            place.say("made");
            place
        };
        let clear = move |place: &Place| {
            place.say("cleared");
            assert!(clears, "cannot be cleared");
        };
        (Stage::new(rows, start, clear), log)
    }

    fn told(log: &Log) -> String {
        log.lock().unwrap().join(" ")
    }

    #[test]
    fn rows_share_a_place_that_goes_with_the_last() {
        let (stage, log) = stage(3, true);
        assert_eq!(told(&log), "");
        stage.perform(|place| place.say("first")).unwrap();
        let failed = stage.perform(|_| panic!("of {}", "row two"));
        assert_eq!(failed.unwrap_err(), "of row two");
        stage.perform(|place| place.say("third")).unwrap();
        assert_eq!(told(&log), "made first cleared third gone");
    }

    #[test]
    fn a_place_that_cannot_be_cleared_is_not_the_next_rows() {
        let (stage, log) = stage(9, false);
        stage.perform(|_| panic!("bad")).unwrap_err();
        stage.perform(|place| place.say("next")).unwrap();
        assert_eq!(told(&log), "made cleared gone made next");
        stage.end();
        assert_eq!(told(&log), "made cleared gone made next gone");
    }

    #[test]
    fn a_stage_that_cannot_start_fails_every_row_with_its_reason() {
        let tries = Arc::new(Mutex::new(0));
        let counted = tries.clone();
        let start = move || {
            *counted.lock().unwrap() += 1;
            panic!("no machine");
        };
        let stage: Stage<()> = Stage::new(3, start, |()| {});
        for _ in 0..2 {
            let failed = stage.perform(|()| {}).unwrap_err();
            assert_eq!(failed, "the stage cannot start: no machine");
        }
        assert_eq!(*tries.lock().unwrap(), 1);
    }

    #[test]
    fn the_last_row_waits_for_the_others() {
        let (stage, log) = stage(3, true);
        std::thread::scope(|scope| {
            let last = scope.spawn(|| stage.perform_last(|place| place.say("last")));
            stage.perform(|place| place.say("first")).unwrap();
            stage.perform(|_| panic!("bad")).unwrap_err();
            last.join().unwrap().unwrap();
        });
        assert_eq!(told(&log), "made first cleared last gone");
    }
}
