//! A tunnel that a driver finds on a connection: it was begun by another task, of this worker or of another.

use std::rc::Rc;

use shared::stats::ListenerCells;

use super::{Codec, Ended, Reply};
use crate::downstream::Downstream;
use crate::message::client::Client;
use crate::message::fault::Side;
use crate::message::head::{BodyLength, Request};
use crate::pipeline::{Asked, Desk, Suspended, resume};
use crate::proto::h1::{HEADER_COUNT_MAX, HeadLimits, Parsed, parse_request};
use crate::proto::transfer::{Link, Patience, Reader, Sent, Writer};
use crate::runtime::buffer::Buffer;
use crate::runtime::net::Stream;

impl Codec {
    /// Goes on with a tunnel that another task, perhaps another worker's, has run so far. One that `stays` ends here.
    pub(in crate::downstream) async fn resume(
        &mut self,
        stream: &Stream,
        client: &Client,
        listener: &ListenerCells,
        downstream: &Downstream,
        desk: &mut Desk,
        (suspended, stays): (Box<Suspended>, bool),
    ) -> Ended {
        let site = Rc::clone(&downstream.site.borrow());
        let request = &suspended.account.request;
        let limits = HeadLimits { bytes: request.len(), fields: HEADER_COUNT_MAX };
        desk.begin(suspended.account.started);
        // The worker that had it has parsed it. Should it read heads otherwise, the line lacks what this one can't read.
        match parse_request(request, limits, &mut self.head) {
            Ok(Parsed::Complete) => self.inbox = Some(Buffer::holding(request)),
            _ => self.head.clear(),
        }
        let bytes = self.input();
        let patience = Patience { step: site.timeouts.client_send, deadline: u64::MAX };
        let link = |timer| Link { stream, timer, side: Side::Client, patience };
        let sent = Sent::default();
        sent.wire.set(suspended.account.sent);
        sent.writes.set(1);
        let mut outbox = Vec::new();
        let mut reply = Reply {
            writer: Writer::new(link(&self.writing), &mut outbox, BodyLength::None, &sent),
            sent: &sent,
            stream,
            timer: &self.reading,
            leading: &[],
            minor: self.head.minor,
            is_head: false,
            is_last: true,
            is_draining: &downstream.is_draining,
            departures: (!stays).then_some(&downstream.departures),
            begun_at: Some(0),
            ends_with_connection: false,
            is_finished: true,
        };
        let mut body = Reader::new(link(&self.reading), &[], BodyLength::None, None, 0);
        let request = Request { head: &self.head, bytes };
        let asked = Asked { site: &site, client, request, listener, log: &downstream.log };
        match resume(asked, suspended, &mut body, &mut reply, desk).await {
            Ok(Some(left)) => Ended::Left(left),
            Err(fault) if !fault.is_client_gone() => Ended::Unread,
            _ => Ended::Closed,
        }
    }
}
