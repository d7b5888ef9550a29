//! Getting a response into a socket by the cheapest way for its size, piece by piece as the socket takes it.

pub(crate) mod assembled;
pub(crate) mod representation;
pub(crate) mod transfer;

pub(crate) use representation::Representation;
pub(crate) use transfer::{Progress, Segment, Transfer};
