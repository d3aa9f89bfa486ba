//! From a compressed stream to a directory: decompression, hashing and limits on the way.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use flate2::bufread::MultiGzDecoder;
use rustix::fs;
use vdkr_core::digest::{Algorithm, Digest};

use super::apply::Writer;
use super::archive::Archive;
use super::recipe::{Recorded, Recorder};
use super::root::Root;
use super::{Limits, Options, UnpackError, Unpacked};

/// Bytes moved at once between stages.
const PIECE: usize = 256 << 10;
/// Pieces that wait between decompression and writing.
const AHEAD: usize = 4;
/// Largest window of a zstd frame (log2 of bytes): what `zstd --ultra` makes, 128 MiB.
const ZSTD_WINDOW: u32 = 27;

/// Unpacks the layer in `source` (a tar archive, plain or compressed with gzip or zstd) into
/// `root`, which should be empty. The stream is read to its end, whatever follows the archive's
/// end mark, and its plain content must have the digest `diff_id`. On an error `root` holds a part
/// of the layer and is to be thrown away. `cancelled` is asked at every piece.
pub fn unpack(
    source: impl Read + Send,
    root: &Root,
    diff_id: &Digest,
    options: &Options,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Unpacked, UnpackError> {
    unpack_recorded(source, root, diff_id, options, cancelled, None)
}

/// As [`unpack`], and notes down how the archive can be made again.
pub fn unpack_recorded(
    source: impl Read + Send,
    root: &Root,
    diff_id: &Digest,
    options: &Options,
    cancelled: &(dyn Fn() -> bool + Sync),
    recorder: Option<&mut Recorder>,
) -> Result<Unpacked, UnpackError> {
    let free = fs::fstatvfs(root.fd()).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    let limit = options.limits.total.min(free.unwrap_or(u64::MAX));
    let limits = Limits {
        total: limit,
        ..options.limits.clone()
    };
    let mut plain = Plain::new(source, diff_id.algorithm(), limits, cancelled)?;
    let writer = Writer::new(root, options, limit);
    let parallel = thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
    let mut unpacked = if parallel {
        thread::scope(|scope| {
            let (send, receive) = sync_channel(AHEAD);
            let plain = &mut plain;
            scope.spawn(move || {
                loop {
                    let mut piece = Vec::with_capacity(PIECE);
                    let read = plain.take(PIECE as u64).read_to_end(&mut piece);
                    let last = !matches!(read, Ok(n) if n > 0);
                    // A receiver that is gone has failed, and says so itself.
                    if send.send(read.map(|_| piece)).is_err() || last {
                        break;
                    }
                }
            });
            let pieces = Pieces {
                receive,
                piece: Vec::new(),
                at: 0,
            };
            write_members(Recorded::new(pieces, recorder), writer)
        })
    } else {
        let plain = BufReader::with_capacity(PIECE, &mut plain);
        write_members(Recorded::new(plain, recorder), writer)
    }?;
    let got = plain.hash.finish();
    if got != *diff_id {
        return Err(UnpackError::DiffId {
            expected: diff_id.clone(),
            got,
        });
    }
    unpacked.plain = plain.length;
    unpacked.compressed = plain.decoder.counted().count;
    Ok(unpacked)
}

fn write_members<R: BufRead>(
    plain: Recorded<'_, R>,
    mut writer: Writer<'_>,
) -> Result<Unpacked, UnpackError> {
    let mut archive = Archive::new(plain);
    while let Some(member) = archive.next_member()? {
        archive.inner_mut().member(&member);
        writer.member(&member, &mut archive)?;
    }
    let mut rest = archive.into_inner();
    loop {
        let length = rest.fill_buf()?.len();
        if length == 0 {
            return writer.finish();
        }
        rest.consume(length);
    }
}

/// Pieces from another thread, as a reader.
struct Pieces {
    receive: Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let length = piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&piece[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.piece.len() {
            // The other end sends an empty piece or an error before it goes.
            self.piece = self.receive.recv().unwrap_or(Ok(Vec::new()))?;
            self.at = 0;
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

/// The plain archive: decompressed, counted, hashed, bounded.
struct Plain<'a, R: Read> {
    decoder: Decoder<R>,
    hash: Hash,
    length: u64,
    limits: Limits,
    cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl<'a, R: Read> Plain<'a, R> {
    fn new(
        source: R,
        algorithm: Algorithm,
        limits: Limits,
        cancelled: &'a (dyn Fn() -> bool + Sync),
    ) -> Result<Self, UnpackError> {
        Ok(Self {
            decoder: Decoder::new(source)?,
            hash: Hash::new(algorithm),
            length: 0,
            limits,
            cancelled,
        })
    }
}

impl<R: Read> Read for Plain<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if (self.cancelled)() {
            return Err(io::Error::other(UnpackError::Cancelled));
        }
        let read = match &mut self.decoder {
            Decoder::None(plain) => plain.read(buffer),
            Decoder::Gzip(gzip) => gzip.read(buffer),
            Decoder::Zstd(zstd) => zstd.read(buffer),
        }?;
        self.hash.update(&buffer[..read]);
        self.length += read as u64;
        if self.length > self.limits.total {
            return Err(io::Error::other(UnpackError::TooLarge {
                limit: self.limits.total,
            }));
        }
        let compressed = self.decoder.counted().count;
        if self.length > self.limits.ratio_after
            && self.length / compressed.max(1) > self.limits.ratio
        {
            return Err(io::Error::other(UnpackError::Bomb {
                compressed,
                plain: self.length,
            }));
        }
        Ok(read)
    }
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count += read as u64;
        Ok(read)
    }
}

type Source<R> = BufReader<Chain<Cursor<Vec<u8>>, Counted<R>>>;

enum Decoder<R: Read> {
    None(Source<R>),
    Gzip(Box<MultiGzDecoder<Source<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, Source<R>>),
}

impl<R: Read> Decoder<R> {
    /// Chooses by the first bytes: media types are known to be wrong, and content that is read in
    /// another way than its maker meant does not have the right digest.
    fn new(source: R) -> Result<Self, UnpackError> {
        let mut source = Counted {
            inner: source,
            count: 0,
        };
        let mut head = Vec::with_capacity(6);
        (&mut source).take(6).read_to_end(&mut head)?;
        let kind = head.clone();
        let source = BufReader::with_capacity(PIECE, Cursor::new(head).chain(source));
        Ok(match kind.as_slice() {
            [0x1f, 0x8b, ..] => Self::Gzip(Box::new(MultiGzDecoder::new(source))),
            // A frame, or a skippable one before it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(ZSTD_WINDOW)?;
                Self::Zstd(decoder)
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0] => return Err(UnpackError::Compression("xz")),
            [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A'] => {
                return Err(UnpackError::Compression("bzip2"));
            }
            [0x04, 0x22, 0x4d, 0x18, ..] => return Err(UnpackError::Compression("lz4")),
            _ => Self::None(source),
        })
    }

    fn counted(&self) -> &Counted<R> {
        let source = match self {
            Self::None(source) => source,
            Self::Gzip(gzip) => gzip.get_ref(),
            Self::Zstd(zstd) => zstd.get_ref(),
        };
        source.get_ref().get_ref().1
    }
}

/// The digest of the plain archive. In an emulated guest this is a third faster than the pure Rust
/// implementation that serves elsewhere, and the TLS library brings it anyway.
pub(super) struct Hash {
    algorithm: Algorithm,
    context: ring::digest::Context,
}

impl Hash {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        let context = ring::digest::Context::new(match algorithm {
            Algorithm::Sha256 => &ring::digest::SHA256,
            Algorithm::Sha512 => &ring::digest::SHA512,
        });
        Self { algorithm, context }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    pub(super) fn finish(&self) -> Digest {
        let mut text = format!("{}:", self.algorithm);
        for byte in self.context.clone().finish().as_ref() {
            for nibble in [byte >> 4, byte & 15] {
                text.extend(char::from_digit(nibble.into(), 16));
            }
        }
        Digest::parse(&text).expect("a digest of this algorithm")
    }
}
