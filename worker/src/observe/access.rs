//! The access log: a line a request, gathered in a buffer that the helper thread writes.

#![forbid(unsafe_code)]

use std::rc::Rc;

use conf::model::AccessLogFormat;
use conf::template::{Part, Template, Variable};
use memchr::memchr_iter;
use shared::stats::Counter;

use crate::helper::Helper;
use crate::message::escape;
use crate::message::template::Variables;

/// What the buffer holds at most in bytes, but for a single line that is longer.
const BUFFER_BYTES: usize = 64 * 1024;
/// How full it is when it is handed over, in bytes. The rest is room for when the helper lags.
const HANDOVER_BYTES: usize = 48 * 1024;

/// The lines of one worker on their way to the log.
#[derive(Debug)]
pub(crate) struct AccessLog {
    format: Format,
    helper: Rc<Helper>,
    buffer: Vec<u8>,
    dropped: Counter,
}

impl AccessLog {
    /// An empty log in this format, written by `helper`. Lines that cannot be are counted in `dropped`.
    pub(crate) fn new(format: &AccessLogFormat, helper: Rc<Helper>, dropped: Counter) -> AccessLog {
        AccessLog { format: Format::new(format), helper, buffer: Vec::with_capacity(BUFFER_BYTES), dropped }
    }

    /// From now on lines look like this.
    pub(crate) fn set_format(&mut self, format: &AccessLogFormat) {
        self.format = Format::new(format);
    }

    /// Adds the line of an exchange. When the helper lags so far behind that there is no room for it, the line is
    /// dropped and counted: traffic does not wait for a disk.
    pub(crate) fn line(&mut self, variables: &impl Variables) {
        let start = self.buffer.len();
        self.format.render(variables, &mut self.buffer);
        let lags = self.buffer.len() > HANDOVER_BYTES && !self.helper.write(&mut self.buffer);
        if lags && self.buffer.len() > BUFFER_BYTES {
            self.buffer.truncate(start);
            self.dropped.inc();
        }
    }

    /// Hands over what there is. To be called every second, so that a quiet log is current, and before the end.
    pub(crate) fn flush(&mut self) {
        if !self.buffer.is_empty() {
            self.helper.write(&mut self.buffer);
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
        // What the helper did not take.
        self.dropped.add(memchr_iter(b'\n', &self.buffer).count() as u64);
    }
}

/// What a line looks like, compiled.
#[derive(Debug)]
pub(crate) struct Format {
    pieces: Vec<Piece>,
    /// What follows the last variable, the line's end included.
    end: Vec<u8>,
}

/// A variable, and the text before it.
#[derive(Debug)]
struct Piece {
    before: Vec<u8>,
    variable: Variable,
    style: Style,
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// With nginx's escapes; `-` when absent.
    Plain,
    /// As a JSON string; `null` when absent.
    Text,
    /// As [`Style::Text`], and made here or checked when it came in: nothing in it needs an escape.
    Clean,
    /// As a JSON number; `null` when absent.
    Number,
}

impl Format {
    /// Compiles a format.
    pub(crate) fn new(format: &AccessLogFormat) -> Format {
        match format {
            AccessLogFormat::Combined => Format::plain(&combined()),
            AccessLogFormat::Json => Format::json(),
            AccessLogFormat::Template(template) => Format::plain(template),
        }
    }

    /// Appends a line.
    pub(crate) fn render(&self, variables: &impl Variables, out: &mut Vec<u8>) {
        for Piece { before, variable, style } in &self.pieces {
            out.extend_from_slice(before);
            match style {
                Style::Plain => plain(variable, variables, out),
                Style::Text => text(variable, variables, escape::json, out),
                Style::Clean => text(variable, variables, |_, _| {}, out),
                Style::Number => number(variable, variables, out),
            }
        }
        out.extend_from_slice(&self.end);
    }

    fn plain(template: &Template) -> Format {
        let (mut pieces, mut before) = (Vec::new(), Vec::new());
        for part in &template.parts {
            match part {
                Part::Literal(text) => before.extend_from_slice(text.as_bytes()),
                Part::Variable(variable) => {
                    let before = std::mem::take(&mut before);
                    pieces.push(Piece { before, variable: variable.clone(), style: Style::Plain });
                }
            }
        }
        before.push(b'\n');
        Format { pieces, end: before }
    }

    fn json() -> Format {
        let pieces = json_keys().into_iter().enumerate().map(|(at, (key, variable, style))| {
            let (open, quote) = (if at == 0 { '{' } else { ',' }, if style == Style::Number { "" } else { "\"" });
            let before = format!("{open}\"{key}\":{quote}").into_bytes();
            Piece { before, variable, style }
        });
        Format { pieces: pieces.collect(), end: b"}\n".to_vec() }
    }
}

/// nginx's `combined`: `$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer"
/// "$http_user_agent"`.
fn combined() -> Template {
    let literal = |text: &str| Part::Literal(text.into());
    let field = |name: &str| Part::Variable(Variable::Http(name.into()));
    Template {
        parts: vec![
            Part::Variable(Variable::RemoteAddr),
            literal(" - "),
            Part::Variable(Variable::RemoteUser),
            literal(" ["),
            Part::Variable(Variable::TimeLocal),
            literal("] \""),
            Part::Variable(Variable::Request),
            literal("\" "),
            Part::Variable(Variable::Status),
            literal(" "),
            Part::Variable(Variable::BodyBytesSent),
            literal(" \""),
            field("referer"),
            literal("\" \""),
            field("user-agent"),
            literal("\""),
        ],
    }
}

/// The members of a JSON line, in order. Readers rely on the names: they are only ever added to.
fn json_keys() -> [(&'static str, Variable, Style); 20] {
    use Style::{Clean, Number, Text};
    [
        ("time", Variable::TimeIso8601, Clean),
        ("remote_addr", Variable::RemoteAddr, Clean),
        // A token (RFC 9110 §9.1).
        ("method", Variable::RequestMethod, Clean),
        ("uri", Variable::RequestUri, Text),
        ("protocol", Variable::ServerProtocol, Clean),
        ("host", Variable::Host, Clean),
        ("status", Variable::Status, Number),
        ("bytes_sent", Variable::BytesSent, Number),
        ("body_bytes_sent", Variable::BodyBytesSent, Number),
        ("request_length", Variable::RequestLength, Number),
        ("request_time", Variable::RequestTime, Number),
        ("route", Variable::Route, Text),
        ("upstream", Variable::ProxyHost, Text),
        ("upstream_addr", Variable::UpstreamAddr, Text),
        ("upstream_status", Variable::UpstreamStatus, Number),
        ("upstream_response_time", Variable::UpstreamResponseTime, Number),
        ("request_id", Variable::RequestId, Clean),
        ("referer", Variable::Http("referer".into()), Text),
        ("user_agent", Variable::Http("user-agent".into()), Text),
        ("fault", Variable::Fault, Clean),
    ]
}

fn plain(variable: &Variable, variables: &impl Variables, out: &mut Vec<u8>) {
    let start = out.len();
    if variables.append(variable, out) {
        escape::log(out, start);
    } else {
        out.push(b'-');
    }
}

/// The opening quote is there already.
fn text(variable: &Variable, variables: &impl Variables, escape: impl FnOnce(&mut Vec<u8>, usize), out: &mut Vec<u8>) {
    let start = out.len();
    if variables.append(variable, out) {
        escape(out, start);
        out.push(b'"');
    } else {
        out.pop();
        out.extend_from_slice(b"null");
    }
}

fn number(variable: &Variable, variables: &impl Variables, out: &mut Vec<u8>) {
    if !variables.append(variable, out) {
        out.extend_from_slice(b"null");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use shared::ident::{Generation, Seat};
    use shared::zone::{Maxima, Role, Zone};

    use super::*;

    /// Values by variable; what isn't here is absent.
    struct Fixed(Vec<(Variable, &'static [u8])>);

    impl Variables for Fixed {
        fn append(&self, variable: &Variable, out: &mut Vec<u8>) -> bool {
            let found = self.0.iter().find(|(of, _)| of == variable);
            found.inspect(|(_, value)| out.extend_from_slice(value)).is_some()
        }
    }

    fn exchange() -> Fixed {
        Fixed(vec![
            (Variable::RemoteAddr, b"192.0.2.1"),
            (Variable::TimeLocal, b"23/Nov/2026:12:00:00 +0000"),
            (Variable::TimeIso8601, b"2026-11-23T12:00:00+00:00"),
            (Variable::Request, b"GET /a\"b HTTP/1.1"),
            (Variable::RequestMethod, b"GET"),
            (Variable::RequestUri, b"/a\"b"),
            (Variable::Status, b"200"),
            (Variable::BodyBytesSent, b"1024"),
            (Variable::RequestTime, b"0.012"),
            (Variable::UpstreamResponseTime, b"0.007"),
            (Variable::UpstreamStatus, b"502"),
            (Variable::Http("user-agent".into()), b"curl\t\xff"),
        ])
    }

    /// A counter that nobody else has.
    fn counter() -> Counter {
        let zone = Zone::anonymous(Maxima::for_workers(1));
        zone.process(zone.claim_slot(Role::Worker, Some(Seat(0)), Generation(1)).unwrap()).log_lines_dropped
    }

    fn line(format: &AccessLogFormat, exchange: &Fixed) -> String {
        let mut out = Vec::new();
        Format::new(format).render(exchange, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn combined_is_as_nginx_writes_it() {
        let expected = "192.0.2.1 - - [23/Nov/2026:12:00:00 +0000] \"GET /a\\x22b HTTP/1.1\" 200 1024 \"-\" \
                        \"curl\\x09\\xFF\"\n";
        assert_eq!(line(&AccessLogFormat::Combined, &exchange()), expected);
        let text = "$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent \
                    \"$http_referer\" \"$http_user_agent\"";
        assert_eq!(Template::parse(text).unwrap(), combined());
    }

    #[test]
    fn json_has_all_its_members() {
        let expected = r#"{"time":"2026-11-23T12:00:00+00:00","remote_addr":"192.0.2.1","method":"GET","#.to_owned()
            + r#""uri":"/a\"b","protocol":null,"host":null,"status":200,"bytes_sent":null,"body_bytes_sent":1024,"#
            + r#""request_length":null,"request_time":0.012,"route":null,"upstream":null,"upstream_addr":null,"#
            + r#""upstream_status":502,"upstream_response_time":0.007,"request_id":null,"referer":null,"#
            + r#""user_agent":"curl\t\u00ff","fault":null}"#
            + "\n";
        assert_eq!(line(&AccessLogFormat::Json, &exchange()), expected);
    }

    #[test]
    fn a_template_ends_its_line() {
        let template = |text: &str| AccessLogFormat::Template(Template::parse(text).unwrap());
        assert_eq!(line(&template("$status \"$host\"!"), &exchange()), "200 \"-\"!\n");
        assert_eq!(line(&template(""), &exchange()), "\n");
    }

    #[test]
    fn lines_are_written_or_counted() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let file = std::fs::File::from(std::os::fd::OwnedFd::from(writer));
        let root = slog::Logger::root(slog::Discard, slog::o!());
        let dropped = counter();
        let helper = Rc::new(Helper::start(Some(file), root).unwrap());
        let mut log =
            AccessLog::new(&AccessLogFormat::Template(Template::parse("$host").unwrap()), helper.clone(), dropped);
        let long = Fixed(vec![(Variable::Host, &[b'h'; 999])]);
        // Nobody reads: the pipe fills, then the helper's queue, then the buffer, and the rest is dropped.
        for _ in 0..1000 {
            log.line(&long);
        }
        assert!(dropped.get() > 0);
        let expected = 1000 - dropped.get();
        let reading = std::io::BufReader::new(&mut reader);
        let mut lines = std::io::BufRead::lines(reading);
        for _ in 0..10 {
            assert_eq!(lines.next().unwrap().unwrap().len(), 999);
        }
        assert!(expected > 10);
        drop(lines);
        drop(reader);
        log.flush();
        assert!(helper.finish(Duration::from_secs(60)));
    }

    #[test]
    fn a_flushed_log_is_complete() {
        let mut file = tempfile::tempfile().unwrap();
        let root = slog::Logger::root(slog::Discard, slog::o!());
        let dropped = counter();
        let helper = Rc::new(Helper::start(Some(file.try_clone().unwrap()), root).unwrap());
        let mut log =
            AccessLog::new(&AccessLogFormat::Template(Template::parse("$status").unwrap()), helper.clone(), dropped);
        let exchange = exchange();
        for _ in 0..20_000 {
            log.line(&exchange);
        }
        log.flush();
        assert!(helper.finish(Duration::from_secs(60)));
        std::io::Seek::rewind(&mut file).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text.lines().count() as u64 + dropped.get(), 20_000);
        assert!(text.lines().all(|line| line == "200"));
    }
}
