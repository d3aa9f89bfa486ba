//! The words of the registry protocol (OCI Distribution v1.1), for both of its ends: paths and
//! queries, error bodies, ranges, authentication challenges, links to a next page, and what a browser
//! says of the page that it asks for.

pub mod browser;
pub mod challenge;
pub mod errors;
pub mod link;
pub mod path;
pub mod percent;
pub mod query;
pub mod range;

pub use browser::{Page, PageError, check_page};
pub use challenge::{Challenge, ChallengeError, Scope, parse_challenges};
pub use errors::{ErrorBody, ErrorCode, ErrorEntry};
pub use link::{next_link, next_page};
pub use path::{Route, RouteError, Target};
pub use query::{Query, QueryError};
pub use range::{ByteRange, ContentRange, RangeAnswer};

/// Longest header value that is read as a list, in bytes.
pub const MAX_HEADER: usize = 8 * 1024;
