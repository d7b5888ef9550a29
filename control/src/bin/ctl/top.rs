//! `ctl top`: every volunteer and interface, live. It asks control and changes nothing.

mod screen;

use std::time::Duration;

use anyhow::Context as _;
use freshet_api::admin::{NodeView, StatusView};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

use crate::client::Client;
use screen::Sort;

/// What is shown, and how often it is asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds between two looks.
    #[arg(long, value_name = "SECS", default_value_t = 1.0, value_parser = seconds)]
    every: f64,
    /// By what volunteers are sorted at first.
    #[arg(long, value_enum, default_value_t = Sort::Delivery)]
    sort: Sort,
    /// Only those whose name, sponsor or state contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Shows interfaces below their volunteers from the start.
    #[arg(long)]
    interfaces: bool,
    /// Prints one screen as text and ends.
    #[arg(long)]
    once: bool,
    /// Columns and rows of that screen.
    #[arg(long, value_name = "COLUMNSxROWS", default_value = "80x24", value_parser = size, requires = "once")]
    size: (u16, u16),
}

/// What control said last.
#[derive(Debug, Default)]
pub(crate) struct Picture {
    pub(crate) nodes: Vec<NodeView>,
    pub(crate) status: Option<StatusView>,
    /// Why there is nothing newer.
    pub(crate) trouble: Option<String>,
}

/// What the operator wants to see.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) sort: Sort,
    pub(crate) reversed: bool,
    pub(crate) filter: String,
    /// The filter is being typed.
    pub(crate) typing: bool,
    pub(crate) interfaces: bool,
    pub(crate) help: bool,
    pub(crate) first: usize,
}

pub(crate) async fn run(client: &Client, options: &Options) -> anyhow::Result<()> {
    let mut wish = Wish {
        filter: options.filter.clone(),
        interfaces: options.interfaces,
        ..Wish::sorted_by(options.sort)
    };
    if options.once {
        let mut picture = Picture { nodes: client.get("nodes", &[]).await?, ..Picture::default() };
        picture.status = Some(client.get("status", &[]).await?);
        print!("{}", screen::as_text(&picture, &mut wish, options.size));
        return Ok(());
    }
    if !std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        anyhow::bail!(
            "`ctl top` needs a terminal; --once prints one screen, `ctl watch` a line every few seconds"
        );
    }
    // Before the terminal is taken over, so that a mistake is told in the ordinary way.
    let mut picture = Picture { nodes: client.get("nodes", &[]).await?, ..Picture::default() };
    let mut terminal = ratatui::try_init().context("cannot take over the terminal")?;
    let outcome = follow(client, &mut terminal, &mut picture, &mut wish, options.every).await;
    ratatui::restore();
    outcome
}

async fn follow(
    client: &Client,
    terminal: &mut ratatui::DefaultTerminal,
    picture: &mut Picture,
    wish: &mut Wish,
    every: f64,
) -> anyhow::Result<()> {
    let mut keys = typed();
    let mut due = tokio::time::interval(Duration::from_secs_f64(every));
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| screen::draw(frame, picture, wish)).context("cannot draw")?;
        tokio::select! {
            key = keys.recv() => match key {
                None => return Ok(()),
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    let control = key.modifiers.contains(KeyModifiers::CONTROL);
                    if wish.press(key.code, control) == Next::Leave {
                        return Ok(());
                    }
                }
                Some(_) => {}
            },
            _ = due.tick() => look(client, picture).await,
        }
    }
}

async fn look(client: &Client, picture: &mut Picture) {
    let asked = async { Ok((client.get("nodes", &[]).await?, client.get("status", &[]).await?)) };
    match asked.await {
        Ok((nodes, status)) => *picture = Picture { nodes, status: Some(status), trouble: None },
        Err(error) => picture.trouble = Some(crate::client::Failure::to_string(&error)),
    }
}

/// Keys as they are typed, read by a thread of its own, since reading waits.
fn typed() -> mpsc::Receiver<Event> {
    let (sender, keys) = mpsc::channel(64);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    keys
}

/// Whether the screen stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Stay,
    Leave,
}

impl Wish {
    fn sorted_by(sort: Sort) -> Self {
        Self {
            sort,
            reversed: false,
            filter: String::new(),
            typing: false,
            interfaces: false,
            help: false,
            first: 0,
        }
    }

    fn press(&mut self, key: KeyCode, control: bool) -> Next {
        if control && key == KeyCode::Char('c') {
            return Next::Leave;
        }
        if self.typing {
            match key {
                KeyCode::Enter => self.typing = false,
                KeyCode::Esc => (self.typing, self.filter) = (false, String::new()),
                KeyCode::Backspace => {
                    self.filter.pop();
                }
                KeyCode::Char(c) if self.filter.len() < 64 => self.filter.push(c),
                _ => {}
            }
            self.first = 0;
            return Next::Stay;
        }
        match key {
            KeyCode::Char('q') => return Next::Leave,
            KeyCode::Esc if self.help => self.help = false,
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Esc => return Next::Leave,
            KeyCode::Char('?' | 'h') => self.help = !self.help,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('i') => self.interfaces = !self.interfaces,
            KeyCode::Char('r') => self.reversed = !self.reversed,
            KeyCode::Char('s') | KeyCode::Right => self.sort = self.sort.next(),
            KeyCode::Left => self.sort = self.sort.before(),
            KeyCode::Down | KeyCode::Char('j') => self.first = self.first.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.first = self.first.saturating_sub(1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.first = self.first.saturating_add(PAGE),
            KeyCode::PageUp => self.first = self.first.saturating_sub(PAGE),
            KeyCode::Home | KeyCode::Char('g') => self.first = 0,
            KeyCode::End | KeyCode::Char('G') => self.first = usize::MAX,
            _ => {}
        }
        Next::Stay
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.2..=3_600.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected 0.2 to 3600 seconds".to_owned()),
    }
}

fn size(text: &str) -> Result<(u16, u16), String> {
    let parse = |text: &str| text.parse::<u16>().ok().filter(|size| (10..=1_000).contains(size));
    text.split_once('x')
        .and_then(|(columns, rows)| Some((parse(columns)?, parse(rows)?)))
        .ok_or_else(|| "expected columns and rows such as 80x24".to_owned())
}

const PAGE: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_what_the_help_says() {
        let mut wish = Wish::sorted_by(Sort::Delivery);
        for key in ['/', 'q', 'x'] {
            assert_eq!(wish.press(KeyCode::Char(key), false), Next::Stay);
        }
        assert!(wish.typing && wish.filter == "qx");
        wish.press(KeyCode::Backspace, false);
        wish.press(KeyCode::Enter, false);
        assert!(!wish.typing && wish.filter == "q");
        wish.press(KeyCode::Esc, false);
        assert!(wish.filter.is_empty());
        let before = wish.sort;
        wish.press(KeyCode::Right, false);
        wish.press(KeyCode::Left, false);
        assert_eq!(wish.sort, before);
        wish.press(KeyCode::Char('i'), false);
        assert!(wish.interfaces);
        assert_eq!(wish.press(KeyCode::Char('q'), false), Next::Leave);
        assert_eq!(wish.press(KeyCode::Char('c'), true), Next::Leave);
    }

    #[test]
    fn sizes_and_seconds_are_checked() {
        assert_eq!(size("80x24"), Ok((80, 24)));
        for text in ["80", "0x24", "80x", "x", "80x99999"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert!(seconds("0").is_err() && seconds("NaN").is_err() && seconds("1.5").is_ok());
    }
}
