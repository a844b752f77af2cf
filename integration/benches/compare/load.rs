//! The clients: wrk for load, and plain sockets for a probe and for connections that idle.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::scenario::Load;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What wrk saw.
#[derive(Debug, PartialEq)]
pub(crate) struct Answers {
    /// Requests that were answered.
    pub(crate) requests: u64,
    /// For how long they were asked.
    pub(crate) seconds: f64,
    /// Half of the requests took less.
    pub(crate) p50_ms: f64,
    /// 99 % of the requests took less.
    pub(crate) p99_ms: f64,
}

/// Puts the load on a port for some seconds.
///
/// # Errors
/// When wrk is not there or fails, and when a single request was not answered as it should be.
pub(crate) fn wrk(port: u16, load: Load, seconds: u32) -> Result<Answers> {
    let mut command = Command::new("wrk");
    command.args(["-t1", "--latency", "--timeout", "10s"]);
    command.arg(format!("-c{}", load.connections)).arg(format!("-d{seconds}s"));
    if !load.keep_alive {
        command.args(["-H", "Connection: close"]);
    }
    let output = command.arg(format!("http://127.0.0.1:{port}{}", load.path)).output().context("wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    parse(&text).with_context(|| format!("wrk said:\n{text}"))
}

/// One request on a connection of its own; the answer must be the whole body with status 200.
///
/// # Errors
/// When it is not.
pub(crate) fn ask(port: u16, load: Load) -> Result<()> {
    exchange(&mut connect(port)?, load, "Connection: close\r\n")
}

/// Connections that have carried one request each, one after the other, and stay open until they are dropped.
///
/// # Errors
/// When a request is not answered as it should be.
pub(crate) fn idle(port: u16, load: Load) -> Result<Vec<TcpStream>> {
    let one = |_| {
        let mut stream = connect(port)?;
        exchange(&mut stream, load, "")?;
        Ok(stream)
    };
    (0..load.connections).map(one).collect()
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream, load: Load, fields: &str) -> Result<()> {
    write!(stream, "GET {} HTTP/1.1\r\nHost: 127.0.0.1\r\n{fields}\r\n", load.path)?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    ensure!(line.starts_with("HTTP/1.1 200 "), "answered {line:?}");
    let mut length = None;
    while line.trim_end() != "" {
        line.clear();
        reader.read_line(&mut line)?;
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok();
        }
    }
    ensure!(length == Some(load.body_bytes), "a body of {length:?} bytes");
    reader.read_exact(&mut vec![0; load.body_bytes])?;
    Ok(())
}

fn parse(text: &str) -> Result<Answers> {
    for complaint in ["Socket errors:", "Non-2xx or 3xx responses:"] {
        if text.contains(complaint) {
            bail!("some requests failed");
        }
    }
    let percentile = |name: &str| -> Result<f64> {
        let value = text.lines().find_map(|line| line.trim().strip_prefix(name)).context("no latencies")?;
        Ok(micros(value.trim())? / 1e3)
    };
    let total = text.lines().find(|line| line.contains(" requests in ")).context("no total")?;
    let (requests, rest) = total.split_once(" requests in ").context("no total")?;
    let (time, _) = rest.split_once(',').context("no time")?;
    Ok(Answers {
        requests: requests.trim().parse()?,
        seconds: micros(time)? / 1e6,
        p50_ms: percentile("50%")?,
        p99_ms: percentile("99%")?,
    })
}

/// A time as wrk writes it: `850.00us`, `1.20ms`, `4.01s`, `1.00m`.
fn micros(text: &str) -> Result<f64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).context("no unit")?;
    let (number, unit) = text.split_at(unit);
    let scale = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 60e6,
        _ => bail!("unit {unit}"),
    };
    Ok(number.parse::<f64>()? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "Running 4s test @ http://127.0.0.1:1/1k
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   812.11us  100.55us   5.30ms   92.51%
    Req/Sec    78.71k     1.20k   79.99k    85.00%
  Latency Distribution
     50%  800.00us
     75%  840.00us
     90%    0.90ms
     99%    1.10ms
  313245 requests in 4.01s, 368.01MB read
Requests/sec:  78116.47
Transfer/sec:     91.77MB
";

    #[test]
    fn a_report_of_wrk_is_read() {
        let expected = Answers { requests: 313_245, seconds: 4.01, p50_ms: 0.8, p99_ms: 1.1 };
        assert_eq!(parse(REPORT).unwrap(), expected);
    }

    #[test]
    fn a_report_with_failures_or_without_figures_is_refused() {
        let failed = REPORT.replace("Requests/sec", "  Non-2xx or 3xx responses: 3\nRequests/sec");
        let broken = REPORT.replace("Requests/sec", "  Socket errors: connect 0, read 7, write 0, timeout 0\n");
        for text in [failed.as_str(), broken.as_str(), "", "unable to connect"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_have_units() {
        for (text, expected) in [("850.00us", 850.0), ("1.20ms", 1200.0), ("4s", 4e6), ("1.00m", 60e6)] {
            assert_eq!(micros(text).unwrap(), expected, "{text}");
        }
        for text in ["", "12", "3h", "us"] {
            assert!(micros(text).is_err(), "{text}");
        }
    }
}
