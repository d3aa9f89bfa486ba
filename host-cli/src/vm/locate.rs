//! Finds the kernel and the initramfs of a virtual machine, and the emulator that runs them.

use std::{
    env, fs, io,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::arch::Arch;

/// Longest `vm.json` that is read, in bytes.
const MAX_DESCRIPTION: u64 = 64 * 1024;

/// Name of the directory beside `vm.json` with what was written into the image.
const BAKED: &str = "baked";

/// How a kernel file starts, which decides what machine can boot it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelFormat {
    /// An uncompressed ELF file with an entry for direct boot.
    Vmlinux,
    /// A compressed x86 kernel with its own loader.
    #[serde(rename = "bzimage")]
    BzImage,
    /// An arm64 kernel.
    Image,
}

/// A bootable pair of files and what is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmImage {
    /// The architecture of the kernel.
    pub arch: Arch,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs, with the agent as `/init`.
    pub initrd: PathBuf,
    /// Format of the kernel.
    pub format: KernelFormat,
    /// Machines that the image was built for; empty when the user gave the kernel.
    pub machines: Vec<String>,
    /// A registry written into the image when it was built, for a user who named none.
    pub registry: Option<String>,
    /// The directory with a copy of the files for registries that were written into the image: what
    /// `container-registry bake` made.
    pub baked: Option<PathBuf>,
    /// Whether the guest takes its disks while it runs.
    pub hot_disks: bool,
}

/// Where to look for images: what the user said, and where the program lies.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// The user's directory, with the name of the option or variable that gave it.
    pub blob_dir: Option<(PathBuf, &'static str)>,
    /// A kernel to boot instead of the image's own.
    pub kernel: Option<PathBuf>,
    /// An initramfs to use instead of the image's own.
    pub initrd: Option<PathBuf>,
    /// Directory of the running program, links followed.
    pub exe_dir: Option<PathBuf>,
}

/// Why no virtual machine can be put together.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// No directory holds an image.
    #[error(
        "no {arch} virtual machine image found; looked in {}; build one with `make image`, or \
         name a directory with --blob-dir",
        list(looked)
    )]
    NoImage {
        /// What was looked for.
        arch: Arch,
        /// The directories without an image.
        looked: Vec<PathBuf>,
    },
    /// The directory that the user named has none.
    #[error("{} (from {origin}) holds no {arch} virtual machine image: {} is missing", dir.display(), missing.display())]
    NotThere {
        /// The named directory.
        dir: PathBuf,
        /// The option or variable.
        origin: &'static str,
        /// What was looked for.
        arch: Arch,
        /// The first file that is not there.
        missing: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The description of an image is not understood.
    #[error("{}: {reason}", path.display())]
    Description {
        /// The description.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is no kernel of the wanted architecture.
    #[error("{} is not a kernel that an {arch} machine can boot ({wanted})", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it should be for.
        arch: Arch,
        /// The formats that would do.
        wanted: &'static str,
    },
    /// The emulator is not installed.
    #[error(
        "{} is not installed; install it with: apt-get install {}",
        arch.qemu_program(), arch.qemu_package()
    )]
    NoEmulator {
        /// The architecture to emulate.
        arch: Arch,
    },
}

fn list(dirs: &[PathBuf]) -> String {
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    dirs.join(", ")
}

/// `vm.json` beside the files of an image.
#[derive(Debug, Deserialize)]
struct Description {
    arch: String,
    kernel_format: KernelFormat,
    #[serde(default)]
    machines: Vec<String>,
    #[serde(default)]
    registry: Option<String>,
    #[serde(default)]
    hot_disks: bool,
}

impl Search {
    /// The image to boot.
    pub fn locate(&self, arch: Arch) -> Result<VmImage, LocateError> {
        let mut image = match (&self.kernel, &self.initrd) {
            (Some(kernel), Some(initrd)) => VmImage {
                arch,
                kernel: kernel.clone(),
                initrd: initrd.clone(),
                format: kernel_format(kernel, arch)?,
                machines: Vec::new(),
                registry: None,
                baked: None,
                hot_disks: false,
            },
            _ => self.built_image(arch)?,
        };
        if let Some(kernel) = &self.kernel {
            image.format = kernel_format(kernel, arch)?;
            image.kernel.clone_from(kernel);
            image.machines.clear();
            image.hot_disks = false;
        }
        if let Some(initrd) = &self.initrd {
            readable(initrd)?;
            image.initrd.clone_from(initrd);
            // What it brings, nobody here knows.
            image.baked = None;
            image.hot_disks = false;
        }
        Ok(image)
    }

    fn built_image(&self, arch: Arch) -> Result<VmImage, LocateError> {
        if let Some((blob_dir, origin)) = &self.blob_dir {
            let dir = blob_dir.join(arch.name());
            if let Some(missing) = missing_file(&dir) {
                let (dir, origin) = (blob_dir.clone(), *origin);
                return Err(LocateError::NotThere {
                    dir,
                    origin,
                    arch,
                    missing,
                });
            }
            return open_image(&dir, arch);
        }
        let places = self.places(arch);
        match places.iter().find(|dir| missing_file(dir).is_none()) {
            Some(dir) => open_image(dir, arch),
            None => Err(LocateError::NoImage {
                arch,
                looked: places,
            }),
        }
    }

    /// Where images lie relative to the program: in a build tree, beside a copied program, and
    /// where a package puts them.
    fn places(&self, arch: Arch) -> Vec<PathBuf> {
        let Some(exe_dir) = &self.exe_dir else {
            return Vec::new();
        };
        let parent = exe_dir.parent().unwrap_or(exe_dir);
        vec![
            parent.join("vm").join(arch.name()),
            exe_dir.join("vdkr-blobs").join(arch.name()),
            parent.join("share/vdkr").join(arch.name()),
        ]
    }
}

fn missing_file(dir: &Path) -> Option<PathBuf> {
    ["kernel", "initramfs"]
        .map(|name| dir.join(name))
        .into_iter()
        .find(|path| !path.is_file())
}

fn open_image(dir: &Path, arch: Arch) -> Result<VmImage, LocateError> {
    let (kernel, initrd) = (dir.join("kernel"), dir.join("initramfs"));
    let path = dir.join("vm.json");
    let refuse = |reason: String| LocateError::Description {
        path: path.clone(),
        reason,
    };
    let text = read_start(&path, MAX_DESCRIPTION)?;
    let description: Description =
        serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
    if description.arch.parse() != Ok(arch) {
        return Err(refuse(format!(
            "describes an image for {:?}, not {arch}",
            description.arch
        )));
    }
    let Description {
        kernel_format: format,
        machines,
        registry,
        hot_disks,
        ..
    } = description;
    Ok(VmImage {
        arch,
        kernel,
        initrd,
        format,
        machines,
        registry,
        baked: Some(dir.join(BAKED)).filter(|baked| baked.is_dir()),
        hot_disks,
    })
}

/// Tells the format of a kernel by its first bytes.
fn kernel_format(path: &Path, arch: Arch) -> Result<KernelFormat, LocateError> {
    let head = read_start(path, 1024)?;
    let at = |offset: usize, magic: &[u8]| {
        head.get(offset..)
            .is_some_and(|tail| tail.starts_with(magic))
    };
    match arch {
        Arch::X86_64 if at(0, b"\x7fELF") => Ok(KernelFormat::Vmlinux),
        Arch::X86_64 if at(0x202, b"HdrS") => Ok(KernelFormat::BzImage),
        // QEMU unpacks a gzip-compressed arm64 kernel itself.
        Arch::Aarch64 if at(56, b"ARM\x64") || at(0, &[0x1f, 0x8b]) => Ok(KernelFormat::Image),
        _ => Err(LocateError::NotAKernel {
            path: path.to_owned(),
            arch,
            wanted: match arch {
                Arch::X86_64 => "bzImage or vmlinux",
                Arch::Aarch64 => "Image or Image.gz",
            },
        }),
    }
}

fn readable(path: &Path) -> Result<(), LocateError> {
    read_start(path, 1).map(drop)
}

fn read_start(path: &Path, limit: u64) -> Result<Vec<u8>, LocateError> {
    let mut head = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut head))
        .map_err(|source| LocateError::Io {
            path: path.to_owned(),
            source,
        })?;
    Ok(head)
}

/// The emulator's program in `PATH`.
pub fn emulator(arch: Arch) -> Result<PathBuf, LocateError> {
    program(arch.qemu_program(), &[]).ok_or(LocateError::NoEmulator { arch })
}

/// A program in `PATH`, or in one of `more` (system directories that an ordinary user's `PATH`
/// often lacks).
pub fn program(name: &str, more: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(more.iter().map(PathBuf::from))
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn write_image(dir: &Path, description: &str) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("kernel"), b"\x7fELF").unwrap();
        fs::write(dir.join("initramfs"), b"070701").unwrap();
        fs::write(dir.join("vm.json"), description).unwrap();
    }

    const X86: &str = r#"{"arch":"x86_64","kernel_version":"6.1","kernel_format":"vmlinux",
        "machines":["microvm","q35"],"agent_sha256":"00","modules":["virtio.ko"]}"#;

    #[test]
    fn beside_the_program() {
        let root = tempfile::tempdir().unwrap();
        let exe_dir = root.path().join("debug");
        let search = Search {
            exe_dir: Some(exe_dir.clone()),
            ..Search::default()
        };
        let error = search.locate(Arch::X86_64).unwrap_err().to_string();
        assert!(
            error.contains("make image") && error.contains("vdkr-blobs/x86_64"),
            "{error}"
        );

        for place in ["share/vdkr/x86_64", "debug/vdkr-blobs/x86_64", "vm/x86_64"] {
            let dir = root.path().join(place);
            write_image(&dir, X86);
            let image = search.locate(Arch::X86_64).unwrap();
            assert_eq!(image.kernel, dir.join("kernel"));
            assert_eq!(image.format, KernelFormat::Vmlinux);
            assert_eq!(image.machines, ["microvm", "q35"]);
        }
    }

    #[test]
    fn a_named_directory_is_the_only_one() {
        let root = tempfile::tempdir().unwrap();
        write_image(&root.path().join("vm/x86_64"), X86);
        let empty = root.path().join("empty");
        let search = Search {
            blob_dir: Some((empty.clone(), "--blob-dir")),
            exe_dir: Some(root.path().join("debug")),
            ..Search::default()
        };
        let error = search.locate(Arch::X86_64).unwrap_err().to_string();
        assert!(
            error.contains("--blob-dir") && error.contains("kernel is missing"),
            "{error}"
        );
        write_image(&empty.join("x86_64"), X86);
        assert_eq!(
            search.locate(Arch::X86_64).unwrap().kernel,
            empty.join("x86_64/kernel")
        );
        write_image(&empty.join("aarch64"), X86);
        let error = search.locate(Arch::Aarch64).unwrap_err().to_string();
        assert!(
            error.contains("vm.json") && error.contains("x86_64"),
            "{error}"
        );
    }

    #[test]
    fn a_given_kernel_is_recognised() {
        let root = tempfile::tempdir().unwrap();
        let (kernel, initrd) = (root.path().join("bzImage"), root.path().join("initrd"));
        let mut head = vec![0; 0x300];
        head[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(&kernel, &head).unwrap();
        fs::write(&initrd, b"x").unwrap();
        let search = Search {
            kernel: Some(kernel.clone()),
            initrd: Some(initrd),
            ..Search::default()
        };
        let image = search.locate(Arch::X86_64).unwrap();
        assert_eq!(image.format, KernelFormat::BzImage);
        assert!(image.machines.is_empty());
        let error = search.locate(Arch::Aarch64).unwrap_err().to_string();
        assert!(error.contains("bzImage is not a kernel"), "{error}");
        fs::write(&kernel, [&[0; 56][..], b"ARM\x64"].concat()).unwrap();
        assert_eq!(
            search.locate(Arch::Aarch64).unwrap().format,
            KernelFormat::Image
        );
    }

    #[test]
    fn programs_need_the_executable_bit() {
        let dir = tempfile::tempdir().unwrap();
        let name = "a-program-of-this-test";
        fs::write(dir.path().join(name), "").unwrap();
        let place = dir.path().to_str().unwrap();
        assert_eq!(program(name, &[place]), None);
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(program(name, &[place]), Some(dir.path().join(name)));
    }
}
