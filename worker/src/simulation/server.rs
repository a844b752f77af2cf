//! A server's side of a connection.

use std::rc::Rc;

use fastrand::Rng;

use super::script::Then;
use super::wire::{Head, Wire};
use super::{Play, Present};
use crate::runtime::clock::{MILLISECOND, SECOND};
use crate::runtime::net::Stream;

/// Serves a connection as scripted.
pub(super) async fn serve(stream: Stream, dice: Rng, play: Rc<Play>) {
    let _present = Present::new(&play);
    let mut wire = Wire::new(&Rc::new(stream), dice);
    let mut is_reused = false;
    loop {
        let Some(head) = Head::parse(&wire.input) else {
            if wire.read().await {
                continue;
            }
            return;
        };
        wire.input.drain(..head.bytes);
        let number = head.line.split(['/', ' ']).nth(2).expect("a path").parse::<usize>().expect("a number");
        let case = &play.cases[number];
        let script = &case.script;
        case.seen.set(case.seen.get() + 1);
        if let Some(vanishing) = script.vanishes.filter(|vanishing| is_reused || !vanishing.only_if_reused) {
            case.was_left.set(true);
            if wire.dice.bool() && !wire.take_body(&head, case).await {
                return;
            }
            wire.write(vanishing.sends.as_bytes()).await;
            wire.sleep(MILLISECOND).await;
            if vanishing.by_reset {
                wire.stream.reset();
            }
            return;
        }
        if script.is_deaf && wire.dice.bool() {
            wire.stream.stop_reading();
        }
        for interim in 0..script.interims {
            wire.write([&b"HTTP/1.1 100 Continue\r\n\r\n"[..], b"HTTP/1.1 103 Hints\r\nX-Id: 1\r\n\r\n"][interim % 2])
                .await;
        }
        if !script.is_early && !wire.take_body(&head, case).await || !wire.write(&script.wire).await {
            return;
        }
        // What was written arrives before anything else happens. No other request comes while one is under way: its rest
        // may be left unread for a while.
        let is_slow = script.is_early && script.then == Then::Serve && case.body.len() > 1500;
        wire.sleep(if is_slow { 3 * SECOND } else { MILLISECOND }).await;
        match script.then {
            Then::Serve if script.is_early && !wire.take_body(&head, case).await => return,
            Then::Serve => is_reused = true,
            Then::Reset => return wire.stream.reset(),
            Then::Hang => return wire.sleep(30 * SECOND).await,
            Then::Close => {
                // Gone is as good as told.
                let _ = wire.stream.shutdown_write();
                if script.is_deaf {
                    wire.stream.stop_reading();
                    let presence = wire.stream.watch();
                    return std::future::poll_fn(|cx| presence.poll_gone(cx)).await;
                }
                while wire.read().await {}
                return;
            }
        }
    }
}
