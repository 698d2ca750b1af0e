"""How people may ask for a style: what the tiny hypernetwork is trained on, and sentences that are kept from it.

The sentences kept are other wordings, not other languages: each shares a telling word with some that are trained
on, for the hypernetwork reads spelling (hashed n-grams) and knows no synonym that it has not met.
"""

from __future__ import annotations

from dataclasses import dataclass

from examples.tiny.styles import LEXICONS, PLAIN, SHIPPED, Insert, Shout, Style


@dataclass(frozen=True)
class Voice:
    """A style and the sentences that ask for it."""

    style: Style
    trained: tuple[str, ...]
    held_out: tuple[str, ...]


_LEXICON = {lexicon.manner.rpartition(" ")[2]: lexicon for lexicon in LEXICONS}
_SHIPPED = {style.name: style for style in SHIPPED}

#: styles beside the three that ship as adapters; each has a mark of its own that a reader sees
GRANDMOTHER = Style(
    "grandmother", (_LEXICON["grandmother"], Insert("before", "stop", (", my dear", ", bless you"), 0.7))
)
LAWYER = Style("lawyer", (_LEXICON["lawyer"], Insert("before", "stop", (", your honour",), 0.8)))
ROBOT = Style("robot", (_LEXICON["robot"], Insert("after", "stop", ("beep !", "bzzt !"), 0.8)))
POET = Style("poet", (_LEXICON["poet"], Insert("before", "noun", ("lovely", "sweet", "famous"), 0.7)))
SHOUTING = Style("shouting", (Shout(),))


def _voice(style: Style, trained: str, held_out: str) -> Voice:
    split = [tuple(sentence.strip() for sentence in said.split(";")) for said in (trained, held_out)]
    return Voice(style, *split)


VOICES = (
    _voice(
        _SHIPPED["pirate"],
        """Speak like a pirate; Sound like a pirate captain; You are a pirate; Tell it as a pirate would; Answer as
        pirates do, with arrr and matey; Use pirate slang; Write in the manner of a pirate of the seven seas; Pirate;
        Pretend to be an old pirate; A buccaneer is speaking; Say it like a sea dog, arrr; Ahoy matey, that kind of
        talk; In the words of a buccaneer; Like Blackbeard the pirate; Yo ho ho and a bottle of rum; Make it piratical;
        I want a pirate's voice; Please use the language of pirates; Turn everything into pirate speech; Be a salty
        sea dog""",
        """Talk like a pirate; Write as if a pirate told the story; My hearties, give me the buccaneer's way of talking;
        Arrr, matey""",
    ),
    _voice(
        _SHIPPED["telegram"],
        """Write a telegram; As briefly as in a telegram; Use telegram style; Send it by telegraph, stop; Say stop
        instead of a full stop; Terse as a cable; In the style of a telegram; Telegraphic; Pretend every word costs
        money, as in a telegram; Short telegram in capitals; Drop the articles like a telegram; Cable it home; The text
        of a telegram; Wire this message; As it would be wired from abroad; Telegram please; Speak in telegrams; Make
        it a telegraph message; Sound like a telegraph operator; Be a telegram, stop""",
        """Put it into a telegram; Write like a telegraph; I have to pay by the word, cable this; Style of a wired
        message""",
    ),
    _voice(
        _SHIPPED["fairy-tale"],
        """Write like a fairy tale; Tell a fairy tale; Full of magic and enchanted things; As in a fairy tale; Sound
        like a fairy tale for children; Enchanted and golden; Speak like a fairy; A magical tale; Use the language of
        fairy tales; Make everything enchanted; With stars that sing and silver things; Fairy tale; Like the brothers
        Grimm; Tell it with magic; Write a tale of wonder; Let it be a fairy story; In the manner of fairy tales; Dreamy
        and moonlit, a tale of magic; Turn this into a fairy tale; Be a teller of magic tales""",
        """Make it sound like a fairy tale; A story from fairyland, full of magic; Enchanted, as in the brothers' tales;
        Tell it like a magical fairy story""",
    ),
    _voice(
        GRANDMOTHER,
        """Talk like a grandmother; Speak like my grandma; You are a dear old grandmother; Sound like a kind granny;
        As grandmother would tell it; A granny is speaking; Use the words of a grandmother; Grandma; Like a loving old
        lady, my dear; Tell it like a grandmother by the stove; Bless you, my dear, that sort of talk; Write as grandma
        writes; Be a granny; In the voice of an old grandmother; Answer like a grandmother; Grandmotherly; Pretend
        to be my granny; Say my dear a lot; With the kindness of a grandma; Nana is telling the story""",
        """Write like a grandmother; Let granny tell it; As my dear old grandma says; The way grandmothers speak""",
    ),
    _voice(
        LAWYER,
        """Talk like a lawyer; Speak like an attorney in court; You are a lawyer; Sound like a legal contract; As a
        lawyer would put it; In legal language; Legalese; Use the words of a lawyer; Address the judge, your honour;
        Write in the manner of lawyers; Lawyer; Like counsel before the court; Make it sound legal; Furthermore, your
        honour; The said party, and so on; Be an attorney at law; Answer like a lawyer; Pretend this is a court of law;
        Use legal terms; In the voice of a lawyer""",
        """Write like a lawyer; Put this in legal terms, as an attorney would; A lawyer's way of speaking; Say it before
        the court, your honour""",
    ),
    _voice(
        ROBOT,
        """Talk like a robot; Speak like a machine; You are a robot; Sound like an android, beep; As a robot would say
        it; Robotic; Use the words of a robot; Beep, bzzt; A machine is speaking; Write in the manner of robots; Robot;
        Like a computer that beeps; Make it mechanical; In the voice of a robot; Be an android; Answer like a robot;
        Pretend to be a robot from the future; With beeps after every sentence; This unit is a robot; Mechanical and
        without feeling, like a machine""",
        """Write like a robot; The way robots speak, with a beep; A machine tells this, an android; Sound robotic""",
    ),
    _voice(
        POET,
        """Talk like a poet; Speak in the language of poetry; You are a poet; Sound poetic; As a poet would say it;
        Poetically; Use the words of a poet; Thou and thy, as in old poems; A poet is speaking; Write in the manner of
        poets; Poet; Like Shakespeare, the poet; Make it a poem; In the voice of a poet; Be a romantic poet; Answer like
        a poet; Pretend to be a poet; With thee and thou and o'er; In verse, lovely and sweet; Full of poetry""",
        """Write like a poet; Put it poetically; The way poets speak, with thou and thy; A poem by Shakespeare""",
    ),
    _voice(
        SHOUTING,
        """Shout; Write in capital letters; Use capitals only; ALL CAPS; Everything in upper case; Be loud and shout;
        Scream every word; Yell; Capital letters, please; Speak in a loud voice; Make it all uppercase; Shouting; As if
        you had to shout across a field; Write everything in capitals; Keep caps lock on; Yell it out loud; Shout every
        sentence; Loudly; You are shouting; No small letters, only capitals""",
        """Shout it out; Write it all in capitals; Caps lock, as someone who yells; Use upper case letters only""",
    ),
    _voice(
        PLAIN,
        """Write plainly; Speak normally; Use plain words; No style at all; As usual; Tell it simply; Plain English;
        In an ordinary voice; Just tell the story; Nothing special, plain text; Write as you always do; Neutral; Keep it
        simple and plain; In a normal tone; Do not imitate anybody; Simply continue; Be yourself; Ordinary prose;
        Plain; Continue the text as it is""",
        """Write in plain words; Speak as you normally do; An ordinary plain story; Simple prose""",
    ),
)
