//! From a compressed stream to members: decompression, hashing and limits on the way.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read as _};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use flate2::bufread::MultiGzDecoder;
use vdkr_core::digest::{Algorithm, Digest};

use super::archive::{Archive, Member};
use super::recipe::{Recorded, Recorder};
use super::{Limits, UnpackError};

/// Bytes moved at once between stages.
const PIECE: usize = 256 << 10;
/// Pieces that wait between decompression and writing.
const AHEAD: usize = 4;
/// Largest window of a zstd frame (log2 of bytes): what `zstd --ultra` makes, 128 MiB.
const ZSTD_WINDOW: u32 = 27;

/// What the members of a layer are handed to.
pub trait Sink {
    /// Takes one member, whose data stands next in `archive`. Data that is left there is skipped.
    fn member<R: BufRead>(
        &mut self,
        member: &Member,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError>;
}

/// How much was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// Bytes of the plain archive.
    pub plain: u64,
    /// Bytes read from the source.
    pub compressed: u64,
}

/// Hands the members of the layer in `source` (a tar archive, plain or compressed with gzip or zstd)
/// to `sink`. The stream is read to its end, whatever follows the archive's end mark, and its plain
/// content must have the digest `diff_id`: until this has returned without an error, what the sink
/// made is not to be used. `cancelled` is asked at every piece.
pub fn read_layer(
    source: impl io::Read + Send,
    diff_id: &Digest,
    limits: Limits,
    cancelled: &(dyn Fn() -> bool + Sync),
    sink: &mut impl Sink,
) -> Result<Measures, UnpackError> {
    read_layer_recorded(source, diff_id, limits, cancelled, sink, None)
}

/// As [`read_layer`], and notes down how the archive can be made again.
pub fn read_layer_recorded(
    source: impl io::Read + Send,
    diff_id: &Digest,
    limits: Limits,
    cancelled: &(dyn Fn() -> bool + Sync),
    sink: &mut impl Sink,
    recorder: Option<&mut Recorder>,
) -> Result<Measures, UnpackError> {
    let mut plain = Plain::new(source, diff_id.algorithm(), limits, cancelled)?;
    let parallel = thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
    if parallel {
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
            read_members(Recorded::new(pieces, recorder), sink)
        })
    } else {
        let plain = BufReader::with_capacity(PIECE, &mut plain);
        read_members(Recorded::new(plain, recorder), sink)
    }?;
    let got = plain.hash.finish();
    if got != *diff_id {
        return Err(UnpackError::DiffId {
            expected: diff_id.clone(),
            got,
        });
    }
    Ok(Measures {
        plain: plain.length,
        compressed: plain.decoder.counted().count,
    })
}

fn read_members<R: BufRead>(
    plain: Recorded<'_, R>,
    sink: &mut impl Sink,
) -> Result<(), UnpackError> {
    let mut archive = Archive::new(plain);
    while let Some(member) = archive.next_member()? {
        archive.inner_mut().member(&member);
        sink.member(&member, &mut archive)?;
    }
    let mut rest = archive.into_inner();
    loop {
        let length = rest.fill_buf()?.len();
        if length == 0 {
            return Ok(());
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

impl io::Read for Pieces {
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
pub(crate) struct Plain<'a, R: io::Read> {
    decoder: Decoder<R>,
    hash: Hash,
    length: u64,
    limits: Limits,
    cancelled: Box<dyn Fn() -> bool + Send + Sync + 'a>,
}

impl<'a, R: io::Read> Plain<'a, R> {
    /// Begins to read one; `cancelled` is asked at every piece.
    pub(crate) fn new(
        source: R,
        algorithm: Algorithm,
        limits: Limits,
        cancelled: impl Fn() -> bool + Send + Sync + 'a,
    ) -> Result<Self, UnpackError> {
        Ok(Self {
            decoder: Decoder::new(source)?,
            hash: Hash::new(algorithm),
            length: 0,
            limits,
            cancelled: Box::new(cancelled),
        })
    }

    /// The digest of what was read so far.
    pub(crate) fn digest(&self) -> Digest {
        self.hash.finish()
    }

    /// What it is read from.
    pub(crate) fn source_mut(&mut self) -> &mut R {
        let source = match &mut self.decoder {
            Decoder::None(source) => source,
            Decoder::Gzip(gzip) => gzip.get_mut(),
            Decoder::Zstd(zstd) => zstd.get_mut(),
        };
        &mut source.get_mut().get_mut().1.inner
    }
}

impl<R: io::Read> io::Read for Plain<'_, R> {
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

impl<R: io::Read> io::Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count += read as u64;
        Ok(read)
    }
}

type Source<R> = BufReader<Chain<Cursor<Vec<u8>>, Counted<R>>>;

enum Decoder<R: io::Read> {
    None(Source<R>),
    Gzip(Box<MultiGzDecoder<Source<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, Source<R>>),
}

impl<R: io::Read> Decoder<R> {
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
pub struct Hash {
    algorithm: Algorithm,
    context: ring::digest::Context,
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hash")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl Hash {
    /// Begins one.
    pub fn new(algorithm: Algorithm) -> Self {
        let context = ring::digest::Context::new(match algorithm {
            Algorithm::Sha256 => &ring::digest::SHA256,
            Algorithm::Sha512 => &ring::digest::SHA512,
        });
        Self { algorithm, context }
    }

    /// Takes more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    /// The digest of all bytes so far.
    pub fn finish(&self) -> Digest {
        let mut text = format!("{}:", self.algorithm);
        for byte in self.context.clone().finish().as_ref() {
            for nibble in [byte >> 4, byte & 15] {
                text.extend(char::from_digit(nibble.into(), 16));
            }
        }
        // As many digits as the algorithm has.
        Digest::parse(&text).unwrap_or_else(|_| unreachable!("{text}"))
    }
}
