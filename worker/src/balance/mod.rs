//! Which of an upstream's servers is next: pure rules over weights.

mod round_robin;

pub(crate) use round_robin::RoundRobin;
