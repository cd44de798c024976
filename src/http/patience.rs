//! A stream that gives its reader so long to take an answer and no longer: whoever never reads, or a byte at a time,
//! must not hold a connection for ever.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// `stream`, whose writes fail when what is to be written has not been taken in time.
pub(super) struct Patient<S> {
    stream: S,
    timeout: Duration,
    /// Runs from the first byte that was not taken at once until all are.
    late: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(super) fn new(stream: S, timeout: Duration) -> Self {
        Self { stream, timeout, late: None }
    }

    /// `polled`, or an error when it has been pending too long.
    fn in_time<T>(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            return polled;
        }
        let timeout = self.timeout;
        let late = self.late.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(late.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.in_time(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        if polled.is_ready() {
            self.late = None; // Everything was taken.
        }
        self.in_time(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        self.in_time(context, polled)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const TIMEOUT: Duration = Duration::from_millis(800);

    /// How long it took to write 64 bytes through a pipe of 16, read a byte every so often.
    async fn written(every: Duration) -> (io::Result<()>, Duration) {
        let (ours, mut theirs) = duplex(16);
        let reader = tokio::spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                if theirs.read_u8().await.is_err() {
                    return;
                }
            }
        });
        let mut patient = Patient::new(ours, TIMEOUT);
        let started = Instant::now();
        let result = async {
            patient.write_all(&[0; 64]).await?;
            patient.flush().await
        };
        let result = result.await;
        reader.abort();
        (result, started.elapsed())
    }

    #[tokio::test]
    async fn a_reader_has_so_long_however_it_dawdles() {
        for (every, is_quick) in [(1, true), (60, false), (60_000, false)] {
            let (result, duration) = written(Duration::from_millis(every)).await;
            assert_eq!(result.is_ok(), is_quick, "{every}");
            if let Err(error) = result {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                assert!(duration >= TIMEOUT && duration < 3 * TIMEOUT, "{every}: {duration:?}");
            }
        }
    }

    #[tokio::test]
    async fn the_time_begins_anew_with_each_answer() {
        let (ours, mut theirs) = duplex(16);
        let mut patient = Patient::new(ours, TIMEOUT);
        for _ in 0..3 {
            let (written, _) = tokio::join!(
                async {
                    patient.write_all(&[0; 20]).await?;
                    patient.flush().await
                },
                async {
                    tokio::time::sleep(TIMEOUT / 2).await;
                    theirs.read_exact(&mut [0; 20]).await
                }
            );
            written.unwrap();
        }
    }
}
