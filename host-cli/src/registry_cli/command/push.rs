//! `push`: OCI images of the deploy directories, or of given paths, under tags of a strategy.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tempfile::NamedTempFile;
use vdkr_core::manifest::Descriptor;
use vdkr_core::reference::check_repository;
use vdkr_core::transport::{Format, Place};
use vdkr_transfer::copy::push_layout;
use vdkr_transfer::{Copier, CopyOptions, Progress, ProgressEvent, Repository};

use crate::exit::Exit;
use crate::out;
use crate::progress::{Mode, Progress as Display};
use crate::registry_cli::args::AuthArgs;
use crate::registry_cli::auth;
use crate::registry_cli::candidate::{Candidate, drop_stale};
use crate::registry_cli::config::{Config, DeployRoots};
use crate::registry_cli::deploy::{Form, FoundImage, find_images, image_at, piped_at};
use crate::registry_cli::error::{WithExit as _, exit_of, printable, words};
use crate::registry_cli::index::add_to_tag;
use crate::registry_cli::remote::Remote;
use crate::registry_cli::tagging::Tagging;

/// Repositories that are worked on at the same time. How many blobs move is the copier's affair.
const PARALLEL: usize = 8;

/// Options of `push`.
#[derive(Debug, Args)]
#[command(
    after_help = "Strategies:\n  timestamp  20260112-143022, one for all images of the run\n  sha, git   the short commit of the build directory, or of the current one\n  branch     the branch, made legal: feature/login is feature-login\n  semver     1.2.3 gives 1.2.3, 1.2 and 1; a pre-release moves no shorter tag\n  version    the version as it is\n  latest     latest\n  arch       every other tag except latest once more with -<architecture>\n\nExamples:\n  container-registry push\n  container-registry push container-base --tag v1.0.0 --tag latest\n  container-registry push --strategy 'semver latest' --version 1.2.3\n  container-registry push build/tmp/deploy/images/qemuarm64/app-latest-oci\n  container-registry push ./app-oci.tar ./saved.tar.gz\n  docker save app:1 | container-registry push - --tag 1"
)]
pub struct PushArgs {
    /// Image names; or paths of OCI layouts, OCI archives, docker-save archives (plain, gzip, zstd; -
    /// for standard input) or a machine's directory; or oci:DIR:NAME and the like; nothing means
    /// every image found
    #[arg(value_name = "IMAGE|PATH")]
    pub images: Vec<String>,
    /// Tag to push as, instead of a strategy (repeatable; needs an image)
    #[arg(short, long = "tag", value_name = "TAG", requires = "images")]
    pub tags: Vec<String>,
    /// Tag strategies, several in one word list: timestamp, sha (git), branch, semver, version, latest,
    /// arch; see below [env: CONTAINER_REGISTRY_TAG_STRATEGY] [default: timestamp latest]
    #[arg(short, long, value_name = "WORDS")]
    pub strategy: Option<String>,
    /// Version for the strategies semver and version [env: IMAGE_VERSION]
    #[arg(short = 'v', long = "version", value_name = "X.Y.Z")]
    pub image_version: Option<String>,
    /// Parent of the machines' deploy directories [env: DEPLOY_DIR_IMAGES]
    #[arg(long, value_name = "DIR")]
    pub deploy_dir_images: Option<String>,
    /// Deploy directory of one machine [env: DEPLOY_DIR_IMAGE]
    #[arg(long, value_name = "DIR", conflicts_with = "deploy_dir_images")]
    pub deploy_dir_image: Option<String>,
    /// Credentials for the registry.
    #[command(flatten)]
    pub auth: AuthArgs,
    /// Print one JSON object per pushed image
    #[arg(long)]
    pub json: bool,
}

/// Pushes what the arguments select. One image that fails does not stop the others.
pub async fn run(config: &Config, args: &PushArgs, progress: Mode) -> Result<Exit> {
    let tagging = Tagging::new(config, &args.tags)?;
    // What came through pipes is there until the end.
    let mut spools = Vec::new();
    let images = select(config, &args.images, &mut spools)?;
    if images.is_empty() {
        eprintln!("{}", nothing_found(&config.deploy_roots()));
        return Ok(Exit::Done);
    }
    let remote = Remote::connect(config, auth::destination(config, &args.auth)?).await?;
    let display = Arc::new(Display::new(progress));
    let copier = Copier::new(CopyOptions {
        progress: sink(&display),
        ..CopyOptions::default()
    });
    let mut outcomes = Vec::new();
    let mut candidates = Vec::new();
    for (image, opened) in Candidate::open_all(images).await {
        match opened {
            Ok(opened) => candidates.extend(opened),
            Err(error) => outcomes.push(failed(&display, &image, &error)),
        }
    }
    let notes = drop_stale(&mut candidates);
    for note in notes {
        display.note(&note);
    }
    let pushing = Pushing {
        remote: &remote,
        copier: &copier,
        tagging: &tagging,
    };
    // Of builds for several machines the same is said once.
    let mut warned = BTreeSet::new();
    // In order, however they end: the output of two runs can be compared.
    let mut groups = stream::iter(by_name(candidates))
        .map(|group| pushing.group(group))
        .buffered(PARALLEL);
    while let Some(group) = groups.next().await {
        for (candidate, outcome) in group {
            match outcome {
                Ok(pushed) => {
                    for warning in &pushed.warnings {
                        let said = format!("warning: {}: {warning}", candidate.image.name);
                        if warned.insert(said.clone()) {
                            display.note(&printable(&said));
                        }
                    }
                    if let Some(note) = unused_tags(&candidate, &pushed) {
                        display.note(&note);
                    }
                    report(&remote, &candidate.image, &pushed, args.json);
                    outcomes.push(Exit::Done);
                }
                Err(error) => outcomes.push(failed(&display, &candidate.image, &error)),
            }
        }
    }
    Ok(Exit::of_several(outcomes))
}

fn failed(display: &Display, image: &FoundImage, error: &anyhow::Error) -> Exit {
    let said = words(error);
    display.note(&format!(
        "error: {} ({}): {said}",
        image.name,
        image.origin()
    ));
    exit_of(error)
}

/// What to say of an archive's own tags that this push does not make.
fn unused_tags(candidate: &Candidate, pushed: &Pushed) -> Option<String> {
    let made = |tag: &&String| !pushed.tags.iter().any(|moved| moved.tag == **tag);
    let unused: Vec<_> = candidate
        .tags
        .iter()
        .filter(made)
        .map(String::as_str)
        .collect();
    (!unused.is_empty()).then(|| {
        format!(
            "{}: the archive calls it {}, which this push does not; --tag says otherwise",
            candidate.image.name,
            unused.join(", ")
        )
    })
}

/// Images of one name share its tags, so they are one piece of work; the order stays.
fn by_name(candidates: Vec<Candidate>) -> Vec<Vec<Candidate>> {
    let mut groups: Vec<Vec<Candidate>> = Vec::new();
    for candidate in candidates {
        match groups
            .iter_mut()
            .find(|group| group[0].image.name == candidate.image.name)
        {
            Some(group) => group.push(candidate),
            None => groups.push(vec![candidate]),
        }
    }
    groups
}

fn select(
    config: &Config,
    wanted: &[String],
    spools: &mut Vec<NamedTempFile>,
) -> Result<Vec<FoundImage>> {
    let mut selected = Vec::new();
    let mut names = Vec::new();
    for word in wanted {
        let path = Path::new(word);
        if word == "-" || is_pipe(path) {
            let spool = spool(path)?;
            selected.extend(piped_at(spool.path()));
            spools.push(spool);
        } else if Place::has_transport(word) && !path.exists() {
            selected.push(at_place(word)?);
        } else if path.exists() && (word.contains('/') || !is_plain_name(path)) {
            selected.extend(at_path(path)?);
        } else if word.contains('/') && (word.starts_with(['/', '.']) || word.ends_with('/')) {
            return Err(anyhow!("{word}: no such file or directory")).exit(Exit::NotFound);
        } else {
            // What today's script also took.
            names.push(word.strip_suffix(".rootfs").unwrap_or(word));
        }
    }
    if names.is_empty() && !wanted.is_empty() {
        return Ok(selected);
    }
    let roots = config.deploy_roots();
    let place = match &roots {
        DeployRoots::AllMachines(dir) | DeployRoots::Machine(dir) => dir.display().to_string(),
        DeployRoots::Unknown => {
            return Err(anyhow!(
                "where are the images? Set DEPLOY_DIR_IMAGES, pass --deploy-dir-images DIR, or give the path of an OCI layout or archive"
            ))
            .exit(Exit::Usage);
        }
    };
    let found = find_images(&roots)
        .with_context(|| format!("cannot read the deploy directory {place}"))
        .exit(Exit::NotFound)?;
    if names.is_empty() {
        return Ok(found);
    }
    for name in &names {
        if !found.iter().any(|image| image.name == *name) {
            let mut available: Vec<_> = found
                .iter()
                .map(|i| format!("  {} ({})", i.name, i.machine))
                .collect();
            available.sort();
            available.dedup();
            return Err(anyhow!(
                "image '{name}' not found in {place}\nAvailable images:\n{}",
                if available.is_empty() {
                    format!("  (none)\n{}", nothing_found(&roots))
                } else {
                    available.join("\n")
                }
            ))
            .exit(Exit::NotFound);
        }
    }
    selected.extend(
        found
            .into_iter()
            .filter(|image| names.contains(&image.name.as_str())),
    );
    Ok(selected)
}

/// What to say where no image is: often a machine's directory was taken for the parent of all, or the
/// other way round.
fn nothing_found(roots: &DeployRoots) -> String {
    let holds = |other: DeployRoots| find_images(&other).is_ok_and(|found| !found.is_empty());
    let (dir, hint) = match roots {
        DeployRoots::AllMachines(dir) => {
            let machine = holds(DeployRoots::Machine(dir.clone()));
            let hint = "; it looks like the directory of one machine: pass it with --deploy-dir-image (DEPLOY_DIR_IMAGE)";
            (dir, machine.then_some(hint))
        }
        DeployRoots::Machine(dir) => {
            let parent = holds(DeployRoots::AllMachines(dir.clone()));
            let hint = "; it looks like the parent of the machines' directories: pass it with --deploy-dir-images (DEPLOY_DIR_IMAGES)";
            (dir, parent.then_some(hint))
        }
        DeployRoots::Unknown => return "No images found; nothing to push".to_owned(),
    };
    format!(
        "No images found in {}; nothing to push{}",
        dir.display(),
        hint.unwrap_or_default()
    )
}

fn is_pipe(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo())
}

/// Keeps what a pipe gives in a file, because archives are not read in order. `-` is standard input.
fn spool(path: &Path) -> Result<NamedTempFile> {
    let mut source: Box<dyn std::io::Read> = if path == Path::new("-") {
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            return Err(anyhow!(
                "- reads an archive from standard input, which is a terminal: docker save IMAGE | container-registry push -"
            ))
            .exit(Exit::Usage);
        }
        Box::new(stdin.lock())
    } else {
        let file = std::fs::File::open(path);
        Box::new(file.with_context(|| format!("cannot open {}", path.display()))?)
    };
    let mut file = NamedTempFile::new().context("cannot create a temporary file")?;
    std::io::copy(&mut source, file.as_file_mut())
        .with_context(|| format!("cannot keep what comes from {}", path.display()))?;
    Ok(file)
}

/// The image of a place such as `oci:DIR:NAME`.
fn at_place(word: &str) -> Result<FoundImage> {
    let place = Place::parse(word)
        .with_context(|| format!("{word:?} is no place of an image"))
        .exit(Exit::Usage)?;
    let Place::File {
        format: Format::Oci | Format::OciArchive | Format::DockerArchive,
        path,
        image,
    } = place
    else {
        return Err(anyhow!(
            "{word}: push takes layouts and archives; use container-registry copy {word} docker://…"
        ))
        .exit(Exit::Usage);
    };
    let path = Path::new(&path);
    let found = image_at(path);
    let mut found = found
        .ok_or_else(|| anyhow!("{} is neither a layout nor an archive", path.display()))
        .exit(Exit::NotFound)?;
    found.pick = image;
    Ok(found)
}

/// Whether a word in the current directory is no layout and no archive, so that it is a name.
fn is_plain_name(path: &Path) -> bool {
    path.is_dir() && image_at(path).is_none()
}

/// The image at a path, or all images of a machine's directory.
fn at_path(path: &Path) -> Result<Vec<FoundImage>> {
    if let Some(image) = image_at(path) {
        return Ok(vec![image]);
    }
    let found = find_images(&DeployRoots::Machine(path.to_owned()))
        .with_context(|| format!("cannot read {}", path.display()))?;
    if found.is_empty() {
        return Err(anyhow!(
            "{} is not an OCI layout (it has no index.json), nor are there any in it",
            path.display()
        ))
        .exit(Exit::NotFound);
    }
    Ok(found)
}

struct Pushed {
    repository: String,
    entries: Vec<Descriptor>,
    tags: Vec<Moved>,
    /// What its tags could not be made of.
    warnings: Vec<String>,
}

/// A tag that was moved.
struct Moved {
    tag: String,
    digest: String,
    /// Whether it has nothing of this image: a newer one for the same platforms took its place.
    replaced: bool,
}

/// Whether later entries take the places of all of these.
fn replaced(entries: &[Descriptor], later: &[Descriptor]) -> bool {
    entries.iter().all(|entry| {
        later.iter().any(|other| {
            let same = match (&entry.platform, &other.platform) {
                (Some(entry), Some(other)) => entry.same_as(other),
                _ => false,
            };
            same && entry.digest != other.digest
        })
    })
}

struct Pushing<'a> {
    remote: &'a Remote,
    copier: &'a Copier,
    tagging: &'a Tagging,
}

impl Pushing<'_> {
    /// Pushes the images of one name: all content side by side, then each tag once with the entries
    /// of all of them, the newest last.
    async fn group(&self, group: Vec<Candidate>) -> Vec<(Candidate, Result<Pushed>)> {
        let contents = group.iter().map(|candidate| self.content(candidate));
        let mut done: Vec<Result<Pushed>> =
            stream::iter(contents).buffered(PARALLEL).collect().await;
        // A tag, its entries so far, and the images that brought them.
        let mut tags: Vec<(String, Vec<Descriptor>, Vec<usize>)> = Vec::new();
        for (at, pushed) in done.iter_mut().enumerate() {
            let Ok(pushed) = pushed else { continue };
            let plan = self.tagging.for_image(&pushed.entries);
            pushed.warnings = plan.warnings;
            for tag in plan.tags {
                let known = tags.iter().position(|(known, ..)| *known == tag);
                let known = known.unwrap_or_else(|| {
                    tags.push((tag, Vec::new(), Vec::new()));
                    tags.len() - 1
                });
                tags[known].1.extend(pushed.entries.iter().cloned());
                tags[known].2.push(at);
            }
        }
        let group_ref = &group;
        let work = tags.iter().map(|(tag, entries, of)| async move {
            let name = self.repository_of(&group_ref[of[0]])?;
            let digest = add_to_tag(&self.remote.client, &name, tag, entries).await?;
            anyhow::Ok(digest.to_string())
        });
        let moved: Vec<Result<String>> = stream::iter(work).buffered(PARALLEL).collect().await;
        for ((tag, _, of), moved) in tags.iter().zip(moved) {
            let moved = moved.map_err(Arc::new);
            for (turn, at) in of.iter().enumerate() {
                let later: Vec<Descriptor> = of[turn + 1..]
                    .iter()
                    .filter_map(|later| done[*later].as_ref().ok())
                    .flat_map(|later| later.entries.iter().cloned())
                    .collect();
                match (&mut done[*at], &moved) {
                    (Ok(pushed), Ok(digest)) => {
                        let replaced = replaced(&pushed.entries, &later);
                        pushed.tags.push(Moved {
                            tag: tag.clone(),
                            digest: digest.clone(),
                            replaced,
                        });
                    }
                    (slot @ Ok(_), Err(error)) => {
                        let exit = exit_of(error);
                        *slot = Err(anyhow!("tag {tag}: {}", words(error))).exit(exit);
                    }
                    (Err(_), _) => {}
                }
            }
        }
        group.into_iter().zip(done).collect()
    }

    fn repository_of(&self, candidate: &Candidate) -> Result<Repository> {
        let name = match self.remote.prefix.namespace() {
            Some(namespace) => format!("{namespace}/{}", candidate.image.name),
            None => candidate.image.name.clone(),
        };
        check_repository(&name).with_context(|| {
            format!(
                "{} cannot be a repository's name; rename the file or directory",
                candidate.image.name
            )
        })?;
        self.remote.repository(&name)
    }

    /// Uploads what is not there yet, without a tag.
    async fn content(&self, candidate: &Candidate) -> Result<Pushed> {
        let repository = self.repository_of(candidate)?;
        let entries = push_layout(
            self.copier,
            &candidate.layout,
            &candidate.images,
            &self.remote.client,
            &repository,
        )
        .await?;
        Ok(Pushed {
            repository: repository.name().to_owned(),
            entries,
            tags: Vec::new(),
            warnings: Vec::new(),
        })
    }
}

/// Shows the events of a transfer.
pub fn sink(display: &Arc<Display>) -> Progress {
    let display = Arc::clone(display);
    Arc::new(move |event: &ProgressEvent| match event {
        ProgressEvent::Planned { blobs, bytes } => display.planned(*blobs, *bytes),
        ProgressEvent::Started { digest, size, what } => {
            display.started(digest.as_str(), &format!("{what:?}").to_lowercase(), *size);
        }
        ProgressEvent::Advanced { digest, done } => display.advanced(digest.as_str(), *done),
        ProgressEvent::Finished { digest, outcome } => {
            display.finished(digest.as_str(), &format!("{outcome:?}").to_lowercase());
        }
        ProgressEvent::Retrying { digest, reason } => {
            display.step(&format!("{}: {reason}; trying again", digest.short()));
        }
        _ => {}
    })
}

fn report(remote: &Remote, image: &FoundImage, pushed: &Pushed, as_json: bool) {
    let platforms: Vec<_> = pushed
        .entries
        .iter()
        .map(|e| {
            e.platform
                .as_ref()
                .map_or_else(|| "unknown".to_owned(), ToString::to_string)
        })
        .collect();
    let tag = |moved: &Moved| {
        let mut tag = json!({"tag": moved.tag, "digest": moved.digest});
        if moved.replaced {
            tag["replaced"] = true.into();
        }
        tag
    };
    if as_json {
        out!(
            "{}",
            json!({
                "image": image.name,
                "machine": image.machine,
                "path": if image.form == Form::Pipe { Path::new("-") } else { &image.path },
                "repository": format!("{}/{}", remote.host(), pushed.repository),
                "platforms": platforms,
                "tags": pushed.tags.iter().map(tag).collect::<Vec<_>>(),
            })
        );
        return;
    }
    let from = image.origin();
    // The digest is another image's where nothing of this one is left.
    for moved in pushed.tags.iter().filter(|moved| !moved.replaced) {
        out!(
            "{}/{}:{} {} ({}, from {from})",
            remote.host(),
            pushed.repository,
            moved.tag,
            moved.digest,
            platforms.join(" "),
        );
    }
}
