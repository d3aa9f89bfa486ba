use std::{sync::mpsc, time::Duration};

use tokio::task::{JoinHandle, spawn_blocking, spawn_local, yield_now};
use vdkr_core::channel::message::{MountSource, MountSpec, RegistrySettings, VolumeAction};

use super::*;
use crate::store::fixture;

/// What a test must not wait for.
const PATIENCE: Duration = Duration::from_mins(1);

/// An agent with a disk that can be made to keep everybody waiting, as there is one thread that may
/// wait for it.
struct Slow {
    agent: Rc<Agent>,
    _state: tempfile::TempDir,
    free: mpsc::Sender<()>,
}

impl Slow {
    async fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let options = ServeOptions::of_state(state.path().to_owned());
        let agent = Rc::new(Agent::open(&options).unwrap());
        let layers = [fixture::layer("a", "a")];
        fixture::add(agent.store().unwrap(), "localhost/app", &layers);
        // What is cleared up at the start is done.
        spawn_blocking(|| {}).await.unwrap();
        let (free, held) = mpsc::channel();
        spawn_blocking(move || held.recv());
        Self {
            agent,
            _state: state,
            free,
        }
    }

    /// Begins something that has to wait for the disk.
    async fn begin<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        let work = spawn_local(work);
        for _ in 0..100 {
            yield_now().await;
        }
        assert!(!work.is_finished(), "it did not wait for the disk");
        work
    }

    /// The disk goes on.
    async fn go_on<T>(&self, work: JoinHandle<T>) -> T {
        self.free.send(()).unwrap();
        tokio::time::timeout(PATIENCE, work).await.unwrap().unwrap()
    }
}

fn with_slow_disk<F: Future<Output = ()>>(test: impl FnOnce(Slow) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async { test(Slow::new().await).await });
}

fn request(name: &str) -> RunRequest {
    RunRequest {
        image: "localhost/app".into(),
        name: Some(name.into()),
        mounts: vec![MountSpec {
            target: "/data".into(),
            source: MountSource::Volume {
                name: Some("data".into()),
                no_copy: false,
            },
            ..MountSpec::default()
        }],
        ..RunRequest::default()
    }
}

#[test]
fn a_container_that_waits_for_the_disk_holds_nobody_up_and_keeps_its_name_and_volumes() {
    with_slow_disk(async |slow| {
        let agent = slow.agent.clone();
        let store = agent.store().unwrap();
        let image = store.resolve("localhost/app", &RegistrySettings::default());
        let (maker, image) = (agent.clone(), image.unwrap());
        let made = slow
            .begin(async move { run::make(&maker, image, request("web")).await })
            .await;
        info::info(&agent).unwrap();
        assert!(agent.book().find("web").is_err(), "it is not on the disk");
        let taken = agent.book().begin(Some("web")).unwrap_err();
        assert!(taken.message.contains("in use"), "{}", taken.message);
        assert!(mounts::is_used(&agent, "data"));
        let entry = slow.go_on(made).await.unwrap();
        assert!(Rc::ptr_eq(&agent.book().find("web").unwrap(), &entry));
        assert!(entry.dir.join("container.json").is_file());
        assert!(agent.volumes.place("data").is_dir());
    });
}

#[test]
fn a_container_whose_host_went_away_before_it_was_there_is_removed() {
    with_slow_disk(async |slow| {
        let agent = slow.agent.clone();
        let store = agent.store().unwrap();
        let image = store.resolve("localhost/app", &RegistrySettings::default());
        let (maker, image) = (agent.clone(), image.unwrap());
        let made = slow
            .begin(async move { run::make(&maker, image, request("web")).await })
            .await;
        made.abort();
        slow.free.send(()).unwrap();
        agent.tasks.close();
        let ended = tokio::time::timeout(PATIENCE, agent.tasks.wait()).await;
        ended.unwrap();
        assert!(agent.book().all().is_empty());
        agent.book().begin(Some("web")).unwrap();
        let left = fs::read_dir(agent.state_dir().join("containers")).unwrap();
        assert_eq!(left.count(), 0);
    });
}

#[test]
fn names_and_volumes_that_wait_for_the_disk_hold_nobody_up() {
    with_slow_disk(async |slow| {
        let agent = slow.agent.clone();
        let maker = agent.clone();
        let work = slow
            .begin(async move {
                let other = "localhost/other:1".to_owned();
                tag::tag(&maker, "localhost/app".to_owned(), other.clone()).await?;
                let create = VolumeAction::Create {
                    name: Some("data".into()),
                    labels: std::collections::BTreeMap::new(),
                };
                volume::volume(&maker, create).await?;
                remove::remove(&maker, &[other], false).await
            })
            .await;
        info::info(&agent).unwrap();
        let done = slow.go_on(work).await.unwrap();
        assert!(matches!(done, Reply::Removed { .. }), "{done:?}");
        assert!(agent.volumes.place("data").is_dir());
    });
}
