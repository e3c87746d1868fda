! SPDX-License-Identifier: Apache-2.0
! MPI_ALLREDUCE from Fortran, by the module mpi_f08: out of place and in place, single and double. Each line has a relative error.
program mpi_sums_f08
    use mpi_f08
    implicit none
    integer, parameter :: n = 40000
    real :: send(n), recv(n)
    double precision :: wide(n)
    integer :: rank, nranks, i, r
    type(MPI_Comm) :: named
    double precision :: exact(n)

    call MPI_INIT()
    call MPI_COMM_RANK(MPI_COMM_WORLD, rank)
    call MPI_COMM_SIZE(MPI_COMM_WORLD, nranks)
    call MPI_COMM_DUP(MPI_COMM_WORLD, named)
    call MPI_COMM_SET_NAME(named, "gradients")
    exact = 0
    do r = 0, nranks - 1
        do i = 1, n
            exact(i) = exact(i) + mod(i * 31 + r * 17, 201) - 100
        end do
    end do
    do i = 1, n
        send(i) = mod(i * 31 + rank * 17, 201) - 100
    end do
    call MPI_ALLREDUCE(send, recv, n, MPI_REAL, MPI_SUM, named)
    if (rank == 0) print '(A,ES12.3)', "floats ", sum((recv - exact)**2) / sum(exact**2)
    recv = send
    call MPI_ALLREDUCE(MPI_IN_PLACE, recv, n, MPI_REAL, MPI_SUM, named)
    if (rank == 0) print '(A,ES12.3)', "in_place ", sum((recv - exact)**2) / sum(exact**2)
    wide = send
    call MPI_ALLREDUCE(MPI_IN_PLACE, wide, n, MPI_DOUBLE_PRECISION, MPI_SUM, named)
    if (rank == 0) print '(A,ES12.3)', "doubles ", sum((wide - exact)**2) / sum(exact**2)
    call MPI_FINALIZE()
end program
