//! Maintenance under way: garbage collection and checks that take longer than a request may.
//!
//! A job goes on when nobody waits for it. Whoever asks for the same thing again joins it; what changes
//! the storage runs one at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use serde_json::Value;
use tokio::sync::watch;
use vdkr_core::distribution::ErrorCode;
use vdkr_core::extension::{FsckOptions, GcOptions, JobState};

use crate::body::Body;
use crate::error::Refusal;
use crate::registry::Registry;
use crate::storage::{Storage, StorageError, random_hex};

/// How long a request waits for a job to end before it is told to ask again.
const PATIENCE: Duration = Duration::from_secs(15);
/// Jobs that are remembered after their end.
const REMEMBERED: usize = 8;
/// Dry runs at a time: they only read, but the disk is one.
const DRY_RUNS: usize = 4;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Gc(GcOptions),
    Fsck(FsckOptions),
}

impl Work {
    /// Whether it may run beside anything else: it takes nothing away and looks at one state.
    fn only_looks(self) -> bool {
        matches!(self, Self::Gc(options) if options.dry_run)
    }

    fn is_gc(self) -> bool {
        matches!(self, Self::Gc(_))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gc(_) => "garbage collection",
            Self::Fsck(_) => "fsck",
        }
    }

    fn run(self, storage: &Storage, stop: &AtomicBool) -> Result<Value, StorageError> {
        let json = |report: Result<Value, serde_json::Error>| report.unwrap_or_default();
        match self {
            Self::Gc(options) => storage
                .collect_garbage(&options, stop)
                .map(|report| json(serde_json::to_value(&report))),
            Self::Fsck(options) => storage
                .check(&options, stop)
                .map(|report| json(serde_json::to_value(&report))),
        }
    }
}

type Outcome = Option<Result<Value, String>>;

#[derive(Debug)]
struct Job {
    id: String,
    work: Work,
    done: watch::Receiver<Outcome>,
}

impl Job {
    fn is_running(&self) -> bool {
        self.done.borrow().is_none()
    }
}

/// The jobs of a registry.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    jobs: Mutex<Vec<Arc<Job>>>,
    stop: Arc<AtomicBool>,
}

impl Jobs {
    /// Asks everything under way to end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Begins a job, or joins the same one.
    fn start(&self, registry: &Registry, work: Work) -> Result<(Arc<Job>, bool), Refusal> {
        let mut jobs = self.lock();
        let mut dry_runs = 0;
        for job in jobs.iter().filter(|job| job.is_running()) {
            match (work.only_looks(), job.work.only_looks()) {
                (false, false) if job.work == work => return Ok((Arc::clone(job), true)),
                (false, false) => return Err(busy(job.work)),
                (true, true) => dry_runs += 1,
                _ => {}
            }
        }
        if dry_runs >= DRY_RUNS {
            return Err(busy(work));
        }
        let (tell, done) = watch::channel(None);
        let job = Arc::new(Job {
            id: random_hex(8),
            work,
            done,
        });
        let (storage, stop) = (Arc::clone(registry.storage()), Arc::clone(&self.stop));
        tokio::task::spawn_blocking(move || {
            let outcome = work.run(&storage, &stop);
            if let Err(error) = &outcome {
                tracing::error!(%error, "{} failed", work.name());
            }
            let outcome = outcome.map_err(|error| match error {
                StorageError::Fs(error) => format!("cannot {}: {}", error.action, error.errno),
                other => other.to_string(),
            });
            tell.send_replace(Some(outcome));
        });
        let finished = jobs.iter().filter(|job| !job.is_running()).count();
        if finished >= REMEMBERED
            && let Some(oldest) = jobs.iter().position(|job| !job.is_running())
        {
            jobs.remove(oldest);
        }
        jobs.push(Arc::clone(&job));
        Ok((job, false))
    }

    fn find(&self, id: Option<&str>, gc: bool) -> Option<Arc<Job>> {
        let fits = |job: &&Arc<Job>| match id {
            Some(id) => job.id == id && job.work.is_gc() == gc,
            None => job.work.is_gc() == gc && !job.work.only_looks(),
        };
        self.lock().iter().rev().find(fits).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins or joins a job and waits for it for a while.
pub(crate) async fn start(registry: &Registry, work: Work) -> Result<Response<Body>, Refusal> {
    let (job, joined) = registry.jobs().start(registry, work)?;
    answer(&job, joined).await
}

/// Waits for a job for a while: the one with this id, or the last one that changed something.
pub(crate) async fn state(
    registry: &Registry,
    query: Option<&str>,
    gc: bool,
) -> Result<Response<Body>, Refusal> {
    let id = query
        .unwrap_or_default()
        .split('&')
        .find_map(|pair| pair.strip_prefix("id="));
    let job = registry.jobs().find(id, gc).ok_or_else(|| {
        Refusal::new(
            ErrorCode::Other("JOB_UNKNOWN".into()),
            "there was no such run since the server was started",
        )
        .with_status(StatusCode::NOT_FOUND)
    })?;
    answer(&job, false).await
}

async fn answer(job: &Job, joined: bool) -> Result<Response<Body>, Refusal> {
    let mut done = job.done.clone();
    // An error means that the task died; what is there then says so.
    let _ = tokio::time::timeout(PATIENCE, done.wait_for(Option::is_some)).await;
    let outcome = done.borrow().clone();
    let ended = outcome.is_some() || done.has_changed().is_err();
    let (report, failed) = match outcome {
        Some(Ok(report)) => (Some(report), None),
        Some(Err(failed)) => (None, Some(failed)),
        None if ended => (
            None,
            Some("it ended without a word; see the log".to_owned()),
        ),
        None => (None, None),
    };
    let state = JobState {
        id: job.id.clone(),
        joined,
        report,
        failed,
    };
    let json = serde_json::to_vec(&state).map_err(|error| {
        Refusal::new(
            ErrorCode::Unknown,
            format!("the report cannot be written: {error}"),
        )
    })?;
    let mut response = Response::new(Body::from(json));
    *response.status_mut() = if ended {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn busy(work: Work) -> Refusal {
    let message = format!("{} is under way; try again when it is done", work.name());
    Refusal::new(ErrorCode::Other("BUSY".into()), message).with_status(StatusCode::CONFLICT)
}

/// The refusal of a query parameter.
pub(crate) fn malformed(name: &str) -> Refusal {
    Refusal::new(
        ErrorCode::Other("QUERY_INVALID".into()),
        format!("query parameter {name:?} is malformed"),
    )
    .with_status(StatusCode::BAD_REQUEST)
}
