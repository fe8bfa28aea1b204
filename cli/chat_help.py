"""What `/help` prints."""

HELP = """\
/help, /?           show this
/clear, /reset      forget the conversation
/system TEXT        set the system message and forget the conversation; without TEXT, show it
/regen              answer the last message again
/read FILE          put a text file in front of the next message
/set NAME VALUE     change a sampling option, n_predict or reasoning; without a name, show them
/save FILE          write the conversation as JSON; -f before the name overwrites without asking
/load FILE          go on with a saved conversation
/stats              show speed and how full the context is
/quit, exit, quit   leave (also Ctrl-D)

Enter sends; Alt-Enter begins another line. Lines between two lines of \"\"\" are one message.
//text and a space before /text send a message that begins with a slash. Ctrl-C stops an answer."""
COMMANDS = tuple(word.strip(",") for line in HELP.splitlines() for word in line.split()[:2] if word.startswith("/"))
