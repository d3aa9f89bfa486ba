//! The VM image: kernel and initramfs in a directory of the cache, linked as `target/vm/<arch>`.
//!
//! The kernel is Debian's cloud kernel, unless one is given by path; `images/qemu/modules.list`
//! names the modules that the initramfs brings.

mod kernel;
mod modules;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::apt::{self, Apt, Deb};
use crate::cache::{self, Key, file_sha256, files_below};
use crate::newc::Archive;
use crate::run::megabytes;
use crate::workspace::{Arch, Workspace};

/// Where the kernel comes from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Debian's package, the known one or the newest that the archive has.
    Debian {
        /// Ask the archive again.
        newest: bool,
    },
    /// A kernel file without modules: all that the VM needs is built in.
    File(PathBuf),
}

/// Makes the image for one architecture around an agent and returns the link to it.
pub(crate) fn build(
    workspace: &Workspace,
    arch: Arch,
    agent: &Path,
    source: &Source,
    baked: Option<&Path>,
) -> Result<PathBuf> {
    let kernel = match source {
        Source::Debian { newest } => debian(workspace, arch, *newest)?,
        Source::File(file) => from_file(workspace, arch, file)?,
    };
    let baked = baked.map_or_else(|| Ok(Vec::new()), read_baked)?;
    let agent_sha256 = file_sha256(agent)?;
    let key = Key::new("vm", 2)
        .with("kernel", kernel.as_os_str().as_encoded_bytes())
        .with("agent", &agent_sha256);
    let key = match baked.is_empty() {
        true => key,
        false => key.with("beside", BAKED),
    };
    let key = baked
        .iter()
        .fold(key, |key, (name, mode, bytes)| {
            key.with("baked", format!("{mode:o} {name}"))
                .with("", bytes)
        })
        .finish();
    let entry = cache::entry(workspace, &format!("vm/{}", arch.name()), &key, |place| {
        eprintln!("packing the {} image", arch.name());
        for file in ["kernel", "bzImage"] {
            if kernel.join(file).is_file() {
                fs::hard_link(kernel.join(file), place.join(file))
                    .or_else(|_| fs::copy(kernel.join(file), place.join(file)).map(drop))
                    .with_context(|| format!("cannot copy {file}"))?;
            }
        }
        write_baked(&place.join(BAKED), &baked)?;
        let loaded = load_list(&kernel, "load.list")?;
        let later = load_list(&kernel, "later.list")?;
        fs::write(
            place.join("initramfs"),
            initramfs(agent, &kernel, &loaded, &later, &baked)?,
        )?;
        let facts: Value = serde_json::from_slice(&fs::read(kernel.join("kernel.json"))?)?;
        let description = json!({
            "arch": arch.name(),
            "kernel_version": facts["version"],
            "kernel_format": facts["format"],
            "machines": machines(arch, &facts),
            // `modules.list` has what disks need that come while the machine runs.
            "hot_disks": facts["packaged"],
            "agent_sha256": agent_sha256,
            "modules": loaded,
        });
        fs::write(
            place.join("vm.json"),
            serde_json::to_vec_pretty(&description)?,
        )?;
        Ok(())
    })?;
    let image = cache::link(workspace, &format!("vm/{}", arch.name()), &entry)?;
    let size = fs::metadata(image.join("initramfs"))?.len();
    eprintln!(
        "image {}: {} (initramfs {})",
        arch.name(),
        image.display(),
        megabytes(size)
    );
    Ok(image)
}

/// Debian's kernel as [`from_package`] unpacks it, for others that boot it.
pub(crate) fn kernel(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    debian(workspace, arch, false)
}

fn debian(workspace: &Workspace, arch: Arch, newest: bool) -> Result<PathBuf> {
    let apt = Apt::open(workspace)?;
    let meta = format!("linux-image-cloud-{}", arch.debian());
    let deb = apt.fetch_behind(&meta, "linux-image-", arch, newest)?;
    from_package(workspace, arch, &deb)
}

/// The QEMU machine types that the kernel boots on, the fastest first. microvm describes its
/// devices by ACPI only, which kernels from elsewhere seldom have tried.
fn machines(arch: Arch, facts: &Value) -> &'static [&'static str] {
    match arch {
        Arch::Aarch64 => &["virt"],
        Arch::X86_64 if facts["format"] == "vmlinux" && facts["packaged"] == true => {
            &["microvm", "q35"]
        }
        Arch::X86_64 => &["q35"],
    }
}

/// Unpacks a kernel package: `kernel`, `bzImage` (x86), `modules/`, `load.list`, `later.list`,
/// `kernel.json`.
fn from_package(workspace: &Workspace, arch: Arch, deb: &Deb) -> Result<PathBuf> {
    let list = workspace.root.join("images/qemu/modules.list");
    let wanted =
        fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let key = Key::new("kernel", 3)
        .with("deb", &deb.sha256)
        .with("modules", &wanted)
        .finish();
    cache::entry(
        workspace,
        &format!("kernel/{}", arch.name()),
        &key,
        |place| {
            eprintln!("unpacking {}", deb.name);
            let work = place.join("unpacked");
            fs::create_dir(&work)?;
            apt::unpack(&deb.file, &work)?;
            let version = deb.name.trim_start_matches("linux-image-");
            let file = fs::read(work.join("boot").join(format!("vmlinuz-{version}")))
                .with_context(|| format!("{} has no kernel file", deb.name))?;
            write_kernel(place, arch, &file, Some(version))?;
            let tree = ["lib/modules", "usr/lib/modules"]
                .map(|dir| work.join(dir).join(version))
                .into_iter()
                .find(|dir| dir.is_dir())
                .with_context(|| format!("{} has no modules", deb.name))?;
            fs::create_dir(place.join("modules"))?;
            let write = |module: &modules::Module| {
                fs::write(place.join("modules").join(&module.file), &module.content)
            };
            let modules = modules::load_order(&tree, &wanted)?;
            let mut names = String::new();
            for module in &modules.first {
                write(module)?;
                names += &module.file;
                names.push('\n');
            }
            fs::write(place.join("load.list"), names)?;
            let mut names = String::new();
            for (name, files) in &modules.later {
                names += name;
                for module in files {
                    write(module)?;
                    names.push(' ');
                    names += &module.file;
                }
                names.push('\n');
            }
            fs::write(place.join("later.list"), names)?;
            cache::remove(&work)
        },
    )
}

/// The same directory from a kernel file alone.
fn from_file(workspace: &Workspace, arch: Arch, file: &Path) -> Result<PathBuf> {
    let bytes =
        fs::read(file).with_context(|| format!("cannot read the kernel {}", file.display()))?;
    let key = Key::new("kernel-file", 1).with("kernel", &bytes).finish();
    cache::entry(
        workspace,
        &format!("kernel/{}", arch.name()),
        &key,
        |place| {
            write_kernel(place, arch, &bytes, None)
                .with_context(|| format!("cannot use the kernel {}", file.display()))
        },
    )
}

fn write_kernel(place: &Path, arch: Arch, file: &[u8], version: Option<&str>) -> Result<()> {
    let kernel = kernel::open(arch, file)?;
    fs::write(place.join("kernel"), &kernel.content)?;
    if arch == Arch::X86_64 && kernel.format == "vmlinux" && !file.starts_with(b"\x7fELF") {
        fs::write(place.join("bzImage"), file)?;
    }
    let facts = json!({
        "version": version.map(str::to_owned).or(kernel.release),
        "format": kernel.format,
        "packaged": version.is_some(),
    });
    fs::write(place.join("kernel.json"), serde_json::to_vec(&facts)?)?;
    Ok(())
}

fn load_list(kernel: &Path, list: &str) -> Result<Vec<String>> {
    match fs::read_to_string(kernel.join(list)) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read the kernel's {list}")),
    }
}

/// The first root file system: the agent as `/init`, two devices, and the modules in their order.
fn initramfs(
    agent: &Path,
    kernel: &Path,
    loaded: &[String],
    later: &[String],
    baked: &[BakedFile],
) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.directory("dev");
    archive.device("dev/console", 0o600, 5, 1);
    archive.device("dev/null", 0o666, 1, 3);
    for dir in ["proc", "sys", "run", "tmp", "etc", "var"] {
        archive.directory(dir);
    }
    archive.file("init", 0o755, &fs::read(agent)?);
    let lists = [("load.list", loaded), ("later.list", later)];
    if lists.iter().any(|(_, lines)| !lines.is_empty()) {
        archive.directory("modules");
    }
    for (name, lines) in lists.into_iter().filter(|(_, lines)| !lines.is_empty()) {
        let text = lines.join("\n") + "\n";
        archive.file(&format!("modules/{name}"), 0o644, text.as_bytes());
    }
    let mut packed = BTreeSet::new();
    // A line of the second list begins with a name that is no file's.
    let later = later.iter().flat_map(|line| line.split(' ').skip(1));
    for file in loaded.iter().map(String::as_str).chain(later) {
        if packed.insert(file) {
            archive.file(
                &format!("modules/{file}"),
                0o644,
                &fs::read(kernel.join("modules").join(file))?,
            );
        }
    }
    let mut made: BTreeSet<String> = ["etc".to_owned()].into();
    for (name, mode, bytes) in baked {
        let parents: Vec<_> = Path::new(name).ancestors().skip(1).collect();
        for parent in parents.into_iter().rev() {
            let parent = parent.to_string_lossy().into_owned();
            if !parent.is_empty() && made.insert(parent.clone()) {
                archive.directory(&parent);
            }
        }
        archive.file(name, *mode, bytes);
    }
    Ok(archive.finish())
}

/// Where `vdkr` finds what the image brings beside the agent: it pulls from there for the machine.
const BAKED: &str = "baked";

/// Writes what the image brings beside `vm.json`. Logins are for their owner alone.
fn write_baked(place: &Path, baked: &[BakedFile]) -> Result<()> {
    for (name, mode, bytes) in baked {
        let path = place.join(name);
        let parent = path.parent().context("a file has a parent directory")?;
        fs::create_dir_all(parent)?;
        let mode = match name.starts_with("etc/") {
            true => *mode,
            false => mode & 0o600,
        };
        // Nobody else may read it while it is written.
        let mut file = fs::File::options()
            .write(true)
            .create_new(true)
            .mode(mode & 0o600)
            .open(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// A file that the image brings beside the agent: its name below the root, mode and content.
type BakedFile = (String, u32, Vec<u8>);

/// The files of a directory that `container-registry bake` has written to.
fn read_baked(dir: &Path) -> Result<Vec<BakedFile>> {
    let mut files = Vec::new();
    for path in files_below(dir)? {
        let name = path.strip_prefix(dir).unwrap_or(&path);
        let name = name
            .to_str()
            .with_context(|| format!("{} is no UTF-8", path.display()))?;
        // The rest is the agent's and the modules' place.
        if ["etc/", "root/", "home/"]
            .iter()
            .any(|top| name.starts_with(top))
        {
            let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
            files.push((name.to_owned(), mode, fs::read(&path)?));
        }
    }
    if files.is_empty() {
        bail!(
            "{} holds nothing to bake; fill it with: container-registry bake --rootfs {} --profile vdkr",
            dir.display(),
            dir.display()
        );
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Places of a workspace with the repository's own lists.
    fn workspace(dir: &Path) -> Workspace {
        let here = Workspace::find().unwrap();
        Workspace {
            target: dir.join("target"),
            cache: dir.join("cache"),
            ..here
        }
    }

    /// A kernel that nothing is taken out of: its payload is compressed in no known way.
    fn bzimage() -> Vec<u8> {
        let mut file = vec![0; 0x4000];
        file[0x1f1] = 4;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x20e..0x210].copy_from_slice(&0x300_u16.to_le_bytes());
        file[0x248..0x24c].copy_from_slice(&0x100_u32.to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&0x200_u32.to_le_bytes());
        let release = b"6.6.1-yocto-standard (oe-user@oe-host)\0";
        file[0x500..0x500 + release.len()].copy_from_slice(release);
        file
    }

    /// Names, modes and contents of a first root file system.
    fn unpacked(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            assert_eq!(&archive[..6], b"070701");
            let field = |at: usize| {
                let text = std::str::from_utf8(&archive[6 + at * 8..14 + at * 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name) = (field(1), field(6) as usize, field(11) as usize);
            let begin = (110 + name).next_multiple_of(4);
            let text = String::from_utf8(archive[110..110 + name - 1].to_vec()).unwrap();
            if text == "TRAILER!!!" {
                return found;
            }
            found.push((text, mode, archive[begin..begin + size].to_vec()));
            archive = &archive[(begin + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn a_kernel_by_path_gets_the_board_that_kernels_from_elsewhere_know_and_no_modules() {
        let dir = tempfile::tempdir().unwrap();
        let (kernel, agent) = (dir.path().join("bzImage-yocto"), dir.path().join("agent"));
        fs::write(&kernel, bzimage()).unwrap();
        fs::write(&agent, "the agent").unwrap();
        let workspace = workspace(dir.path());
        let source = Source::File(kernel.clone());
        let image = build(&workspace, Arch::X86_64, &agent, &source, None).unwrap();
        assert_eq!(image, workspace.target.join("vm/x86_64"));
        assert!(fs::read(image.join("kernel")).unwrap() == bzimage());
        let description = fs::read(image.join("vm.json")).unwrap();
        let description: Value = serde_json::from_slice(&description).unwrap();
        assert_eq!(
            description,
            json!({
                "arch": "x86_64",
                "kernel_version": "6.6.1-yocto-standard",
                "kernel_format": "bzimage",
                "machines": ["q35"],
                "hot_disks": false,
                "agent_sha256": file_sha256(&agent).unwrap(),
                "modules": [],
            })
        );
        let files = unpacked(&fs::read(image.join("initramfs")).unwrap());
        let init = files.iter().find(|(name, ..)| name == "init").unwrap();
        assert_eq!(init.1, 0o100_755);
        assert_eq!(init.2, b"the agent");
        assert!(!files.iter().any(|(name, ..)| name.starts_with("modules")));

        let none = Source::File(dir.path().join("none"));
        let error = build(&workspace, Arch::X86_64, &agent, &none, None).unwrap_err();
        assert!(error.to_string().contains("cannot read the kernel"));
        let error = build(&workspace, Arch::Aarch64, &agent, &source, None).unwrap_err();
        assert!(
            format!("{error:#}").contains("bzImage-yocto: not a 64-bit ARM"),
            "{error:#}"
        );
    }

    #[test]
    fn what_was_baked_is_brought_with_its_modes_and_nothing_in_the_agents_place() {
        let dir = tempfile::tempdir().unwrap();
        let (kernel, agent) = (dir.path().join("bzImage"), dir.path().join("agent"));
        fs::write(&kernel, bzimage()).unwrap();
        fs::write(&agent, "the agent").unwrap();
        let workspace = workspace(dir.path());
        let source = Source::File(kernel);
        let baked = dir.path().join("rootfs");
        let built = || build(&workspace, Arch::X86_64, &agent, &source, Some(&baked));
        fs::create_dir(&baked).unwrap();
        fs::write(baked.join("init"), "another").unwrap();
        let error = built().unwrap_err().to_string();
        assert!(
            error.contains("holds nothing to bake") && error.contains("--profile vdkr"),
            "{error}"
        );

        for (name, mode, text) in [
            ("etc/vdkr/registry.conf", 0o644, "registry"),
            ("root/.docker/config.json", 0o600, "secret"),
        ] {
            let path = baked.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        symlink("/etc/shadow", baked.join("etc/link")).unwrap();
        let first = built().unwrap().canonicalize().unwrap();
        let files = unpacked(&fs::read(first.join("initramfs")).unwrap());
        let at = |wanted: &str| files.iter().position(|(name, ..)| name == wanted);
        let file = |name: &str| {
            let (_, mode, content) = &files[at(name).unwrap()];
            (*mode, content.as_slice())
        };
        assert_eq!(
            file("etc/vdkr/registry.conf"),
            (0o100_644, &b"registry"[..])
        );
        assert_eq!(
            file("root/.docker/config.json"),
            (0o100_600, &b"secret"[..])
        );
        assert_eq!(file("init"), (0o100_755, &b"the agent"[..]));
        assert_eq!(at("etc/link"), None);
        // The kernel makes no directories by itself.
        for (dir, within) in [
            ("etc/vdkr", "etc/vdkr/registry.conf"),
            ("root", "root/.docker"),
            ("root/.docker", "root/.docker/config.json"),
        ] {
            assert!(at(dir).unwrap() < at(within).unwrap(), "{dir}");
        }

        // Another content is another image.
        fs::write(baked.join("etc/vdkr/registry.conf"), "changed").unwrap();
        let second = built().unwrap().canonicalize().unwrap();
        assert_ne!(first, second);
    }
}
