"""Names of workers: readable words that are easy to distinguish in a log."""

from __future__ import annotations

import secrets

__all__ = ["worker_name"]

# Short words, so that a name with its random characters has at most 24 characters.
_ADJECTIVES = tuple(
    """
able agile amber apt bold brave breezy bright brisk calm candid chatty civil clean clear clever cosy crisp curious
daring deft dotty eager early easy fair fancy fleet fond frank fresh gentle giddy glad golden grand hardy honest
humble ideal jolly keen kind light limber lively loyal lucid lucky lunar mellow merry mild modest neat nimble noble
patient placid plain plucky polite proud quick quiet rapid ready rosy royal rustic sharp shiny silent simple sleek
smart snappy sober solar solid spry stable steady sturdy sunny supple sure swift tender tidy tough true upbeat valid
vivid warm wise witty zesty
""".split()  # noqa: SIM905 - a list of quoted words is harder to read
)
_ANIMALS = tuple(
    """
adder alpaca ant ape auk badger bat bear beaver bee bison bobcat buffalo camel cat cheetah cobra condor cougar coyote
crab crane cricket crow deer dingo dolphin donkey dove dragon duck eagle eel egret elk emu falcon ferret finch fox
frog gazelle gecko gibbon goat goose gorilla hamster hare hawk hedgehog heron hippo hornet horse hyena ibex ibis
iguana impala jackal jaguar kestrel kiwi koala lemming lemur leopard lion lizard llama lobster lynx macaw magpie
mantis marten mink mole moose moth mouse mule newt ocelot octopus okapi orca osprey ostrich otter owl ox oyster panda
panther parrot pelican penguin pigeon pony puffin puma quail rabbit raccoon ram rat raven robin salmon seal shark
sheep shrew skunk sloth snail snake sparrow squid stork swan tapir tiger toad toucan trout tuna turtle viper vulture
walrus wasp weasel whale wolf wombat yak zebra
""".split()  # noqa: SIM905 - a list of quoted words is harder to read
)


def worker_name() -> str:
    """Returns an adjective, an animal and six random characters, together at most 24 characters."""
    return f"{secrets.choice(_ADJECTIVES)}_{secrets.choice(_ANIMALS)}_{secrets.token_hex(3)}"
