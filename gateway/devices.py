"""Classes of devices, numbered: the data plane keeps a byte a connection, and the registry shows the name again."""

NUMBERS_MAX = 255
OTHER = "(other)"


class Devices:
    """The classes that a worker has heard of: a handful, but whoever signs tokens decides."""

    def __init__(self) -> None:
        self._names = [""]
        self._numbers = {"": 0}

    def number(self, name: str) -> int:
        """The number of a class; 0: none was told, NUMBERS_MAX: there are too many for each to have one."""
        number = self._numbers.get(name)
        if number is None:
            if len(self._names) == NUMBERS_MAX:
                return NUMBERS_MAX
            number = self._numbers[name] = len(self._names)
            self._names.append(name)
        return number

    def known(self, name: str) -> int | None:
        """The number of a class that was heard of; None: nobody here has it, or it has none of its own."""
        return NUMBERS_MAX if name == OTHER else self._numbers.get(name)

    def name(self, number: int) -> str | None:
        """The class of a number; None: none was told."""
        if number == NUMBERS_MAX:
            return OTHER
        return self._names[number] or None
